"""Sources of text: which files there are."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from calm_core.config import DataConfig
from calm_core.data.sources.content import FoundFile
from calm_core.data.sources.formats import ARROW_SUFFIX, FORMATS
from calm_core.errors import SourceError
from calm_core.store import storage

_FILES_AT_A_TIME = 16
_LARGEST_OBJECT = 64 << 20  # bytes of a JSON file that lists others
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
            uris.setdefault(_real(uri), uri)
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


def _real(uri: str) -> str:
    """The same for all names of a file."""
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
        raise SourceError(f"{source}: no such file, and nothing matches; check data.sources")
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
            raise SourceError(f"{folder}: is a folder; name its files, e.g. {storage.join(folder, '*.jsonl')}")
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


def _of_known_kind(uri: str, *suffixes: str) -> str:
    if not uri.endswith(suffixes or tuple(FORMATS)):
        raise SourceError(
            f"{uri}: unknown kind of source; {', '.join(suffixes or FORMATS)} files are read"
            + (
                ""
                if suffixes
                else ", folders of such files that are named like one, and folders that datasets has saved"
            )
        )
    return uri


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
        raise SourceError(f"{uri}: is no JSON object; save the dataset again")
    return content
