"""What lies where `tokenizer.source` points: as part of a cache key, its content counts and not its name."""

from calm_core.store import storage
from calm_core.store.artifact import digest_of

_BESIDE = ("special_tokens_map.json", "tokenizer_config.json")
_IN_FOLDER = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model", *_BESIDE)


def digest_of_source(source: str) -> str:
    """What tells the files that `Tokenizer.load` may read from others; empty where no source is named."""
    if not source:
        return ""
    folder = source.rpartition("/")[0]
    if source.endswith(".model"):
        uris = [source]
    elif source.endswith(".json"):
        uris = [source, *(storage.join(folder or ".", beside) for beside in _BESIDE)]
    else:
        uris = [storage.join(source, path) for path in _IN_FOLDER]
    return digest_of([_digest(uri) for uri in uris])


def _digest(uri: str) -> str | None:
    try:
        return storage.digest(uri)
    except (FileNotFoundError, IsADirectoryError):
        return None
