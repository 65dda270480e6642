"""Sources of text: which files there are."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from calm_core.config import DataConfig
from calm_core.data.sources.content import FoundFile
from calm_core.data.sources.formats import ARROW_SUFFIX, FORMATS
from calm_core.errors import SourceError
from calm_core.store import nearby, storage
from calm_core.store.artifact import MANIFEST_NAME

_FILES_AT_A_TIME = 16
_LARGEST_OBJECT = 64 << 20  # bytes of a JSON file that lists others
_PATTERN = re.compile(r"[*?\[]")
_HIDDEN = (".", "_")
"""How names begin that other data libraries skip as well: what an editor, a system or a writer keeps for itself."""


def find_files(config: DataConfig) -> list[FoundFile]:
    """All files of the sources, each once, in the order of the sources.

    A file that two names lead to, by a link or by "..", is one file.

    Raises:
        SourceError: A source is missing, matches nothing, or has an unknown suffix.
    """
    uris: dict[str, str] = {}
    for files in files_by_source(config).values():
        for uri in files:
            uris.setdefault(real_name(uri), uri)
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return list(pool.map(FoundFile.at, uris.values()))


def files_by_source(config: DataConfig) -> dict[str, list[str]]:
    """The URIs of each source's files; nothing is read of them.

    Raises:
        SourceError: As `find_files`.
    """
    if not config.sources:
        raise SourceError("data.sources is empty; name .jsonl or .txt files, e.g. texts/*.jsonl")
    return {source: list(_files_of(source)) for source in config.sources}


def real_name(uri: str) -> str:
    """The same for all names of a file.

    Raises:
        SourceError: It is a pipe or the like.
    """
    if not storage.is_local(uri):
        return uri
    path = os.path.realpath(storage.filesystem_of(uri)[1])
    if Path(path).exists() and not Path(path).is_file():  # on a pipe, reading would wait
        raise SourceError(f"{uri}: is no file that can be read again and again; copy its content into one")
    return path


def _files_of(source: str) -> Iterator[str]:
    """The files that a source names; none that it matches is left out unseen."""
    found = storage.glob(source)
    if not found:
        raise SourceError(f"{source}: {_why_nothing(source)}")
    is_pattern = found != [storage.absolute(source)]
    matches = [uri for uri in found if not (is_pattern and _is_hidden(uri, source))]
    if not matches:
        raise SourceError(
            f"{source}: matches only names that begin with . or _, which are skipped; spell the name to read one"
        )
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        are_folders = list(pool.map(storage.is_folder, matches))
    plain_folders, files = [], []
    for uri, is_folder in zip(matches, are_folders, strict=True):
        inside = _files_of_folder(uri) if is_folder else [_of_known_kind(uri)]
        if inside is None:
            plain_folders.append(uri)
        files += inside or []
    known = {*files}
    for folder in plain_folders:  # fine where the pattern goes into it
        if not is_pattern or not known.issuperset(u for u in storage.files_below(folder) if not _is_hidden(u, source)):
            raise SourceError(f"{folder}: {_why_plain_folder(folder if is_pattern else source)}")
    if not files:
        raise SourceError(f"{source}: matches only folders without files; check data.sources")
    yield from files


def _is_hidden(uri: str, pattern: str) -> bool:
    """Whether a name on the way to a match is one to skip, and the pattern does not spell it."""
    spelled = [name for name in storage.absolute(pattern).split("/") if name.startswith(_HIDDEN)]
    return any(
        part.startswith(_HIDDEN) and not any(part == name or fnmatchcase(part, name) for name in spelled)
        for part in uri.split("/")
    )


def _why_nothing(source: str) -> str:
    """Why a source leads to no file, and what there is instead."""
    parts = source.split("/")
    first = next((i for i, part in enumerate(parts) if _PATTERN.search(part)), None)
    if first is None:
        return f"no such file; {nearby.hint(source)}"
    folder = "/".join(parts[:first]) or ("/" if source.startswith("/") else ".")
    if folder.endswith(":/"):
        return "nothing matches; name the bucket without a pattern"
    if not storage.is_folder(folder):
        return f"nothing matches, since there is no folder {folder}; {nearby.hint(folder)}"
    place = "this folder" if folder == "." else folder
    return f"nothing matches; {place} {nearby.counted(storage.kinds_in(folder), _suffix_of)}"


def _suffix_of(name: str) -> str:
    known = next((suffix for suffix in FORMATS if name.endswith(suffix)), "")
    return known or "".join(Path(name).suffixes[-2:] if name.endswith(_PACKED) else Path(name).suffixes[-1:])


def _why_plain_folder(folder: str) -> str:
    """Why a folder is no source, and how its files are named."""
    if storage.exists(storage.join(folder, MANIFEST_NAME)):
        return "is an artifact and holds no text to prepare; --dataset takes a dataset, data.extends adds sources to it"
    kinds = storage.kinds_in(folder)
    held = nearby.counted(kinds, _suffix_of)
    known = [suffix for name, is_folder in kinds.items() if not is_folder and (suffix := _suffix_of(name)) in FORMATS]
    if known:
        most = max(sorted(set(known)), key=known.count)
        return f"is a folder; name its files, e.g. '{storage.join(folder, f'*{most}')}' (it {held})"
    if any(kinds.values()):
        return f"is a folder that {held}; name files in them, e.g. '{storage.join(folder, '**', '*.jsonl')}'"
    return f"is a folder that {held}; {', '.join(FORMATS)} files are read"


def _of_known_kind(uri: str, *suffixes: str) -> str:
    if not uri.endswith(suffixes or tuple(FORMATS)):
        advice = next((advice for end, advice in _ADVICE.items() if uri.lower().endswith(end)), "")
        if suffixes:
            advice = f"; {suffixes[0]} files are read there"
        elif advice:
            advice = f"; {advice}"
        else:
            advice = (
                f"; {', '.join(FORMATS)} files are read, and folders that datasets has saved or that are named like one"
            )
        raise SourceError(f"{uri}: unknown kind of source{advice}")
    return uri


_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
_ADVICE = {
    **{suffix: f"write its end in small letters, {suffix}" for suffix in FORMATS},
    ".json": "write one object a line and name it .jsonl, e.g. jq -c '.[]' texts.json > texts.jsonl",
    ".json.gz": "name it .jsonl.gz if it holds one object a line",
    ".ndjson": "name it .jsonl",
    ".csv": "write it as .jsonl or .parquet, e.g. with pandas.read_csv(...).to_parquet(...)",
    ".tsv": "write it as .jsonl or .parquet, e.g. with pandas.read_csv(..., sep='\\t').to_parquet(...)",
    ".txt.gz": "unpack it with gunzip",
    ".parquet.gz": "unpack it with gunzip",
    ".zip": "unpack it, and name the files",
    ".tar.gz": "unpack it, and name the files",
    ".tar": "unpack it, and name the files",
    ".md": "name it .txt if it is plain text",
    ".text": "name it .txt",
    ARROW_SUFFIX: "name the folder that datasets has saved, not a file of it",
}
"""What to do about files of other kinds."""


def _files_of_folder(uri: str) -> list[str] | None:
    """The data files of a folder that is one data set, None for any other folder.

    It is one that Hugging Face's datasets has saved, or, as Spark and other writers of several parts make it, one whose
    name ends like a file of their format.
    """
    if storage.exists(file := storage.join(uri, "dataset_dict.json")):
        splits = _read_object(file).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise SourceError(f"{file}: does not name the splits; save the dataset again")
        names = ", ".join(storage.child(uri, split) for split in splits)
        raise SourceError(f"{uri}: holds several splits; name those to read: {names}")
    if storage.exists(file := storage.join(uri, "state.json")) and "_data_files" in (state := _read_object(file)):
        if state.get("_indices_data_files"):
            raise SourceError(f"{uri}: holds a selection of rows; call its flatten_indices() and save it again")
        listed = state["_data_files"] if isinstance(state["_data_files"], list) else []
        files = [name for entry in listed if isinstance(entry, dict) and isinstance(name := entry.get("filename"), str)]
        if not files or len({*files}) < len(listed):
            raise SourceError(f"{file}: does not name the files of the dataset, each once; save it again")
        return [_of_known_kind(storage.child(uri, name), ARROW_SUFFIX) for name in files]
    suffix = next((suffix for suffix in FORMATS if uri.endswith(suffix)), None)
    if suffix is None:
        return None
    parts = sorted(part for part in storage.files_below(uri) if not _is_hidden(part, uri))
    if not parts:
        raise SourceError(f"{uri}: is a folder without files; leave it out of data.sources")
    return [_of_known_kind(part, suffix) for part in parts]


def _read_object(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read(uri, 0, _LARGEST_OBJECT))  # cut off, it is none
    except (ValueError, RecursionError, IsADirectoryError):
        content = None
    if not isinstance(content, dict):
        raise SourceError(f"{uri}: is damaged (no JSON object); save the dataset again with save_to_disk")
    return content
