"""Sources of text: which files there are."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from calm_core.config import DataConfig
from calm_core.data.sources.content import FoundFile
from calm_core.data.sources.formats import FORMATS, format_of
from calm_core.errors import SourceError
from calm_core.store import storage

_FILES_AT_A_TIME = 16


def find_files(config: DataConfig) -> list[FoundFile]:
    """All files of the sources, each once, in the order of the sources.

    Raises:
        SourceError: A source is missing, matches nothing, or has an unknown suffix.
    """
    if not config.sources:
        raise SourceError("data.sources is empty; name .jsonl or .txt files, e.g. texts/*.jsonl")
    uris = list(dict.fromkeys(uri for source in config.sources for uri in _files_of(source)))
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return list(pool.map(FoundFile.at, uris))


def _files_of(source: str) -> Iterator[str]:
    found = storage.glob(source)
    if not found:
        raise SourceError(f"{source}: no such file, and nothing matches; check data.sources")
    files = 0
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        are_folders = list(pool.map(storage.is_folder, found))
    for uri, is_folder in zip(found, are_folders, strict=True):
        for file in _files_of_folder(uri) if is_folder else [uri]:
            if format_of(file) is None or (file.endswith(".arrow") and file == uri):
                raise SourceError(
                    f"{file}: unknown kind of source; {', '.join(FORMATS)} files are read, and folders that "
                    "datasets has saved"
                )
            files += 1
            yield file
    if not files:
        raise SourceError(f"{source}: is a folder; name its files, e.g. {storage.join(source, '*.jsonl')}")


def _files_of_folder(uri: str) -> list[str]:
    """The data files of a folder that Hugging Face's datasets has saved; none of any other folder."""
    if storage.exists(storage.join(uri, "dataset_dict.json")):
        splits = json.loads(storage.read(storage.join(uri, "dataset_dict.json")))["splits"]
        names = ", ".join(storage.join(uri, split) for split in splits)
        raise SourceError(f"{uri}: holds several splits; name those to read: {names}")
    if not storage.exists(storage.join(uri, "state.json")):
        return []
    try:
        state = json.loads(storage.read(storage.join(uri, "state.json")))
    except ValueError:
        raise SourceError(f"{storage.join(uri, 'state.json')}: is no JSON; save the dataset again") from None
    if not isinstance(state, dict) or "_data_files" not in state:
        return []
    if state.get("_indices_data_files"):
        raise SourceError(f"{uri}: holds a selection of rows; call its flatten_indices() and save it again")
    return [storage.join(uri, file["filename"]) for file in state["_data_files"]]
