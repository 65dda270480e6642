"""At least 50 MB of technical English from the packages that are installed: the text of the data benchmarks."""

import gzip
import html
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calm_core.data.sources.factbook import write_factbook

SOURCE_CODE_OF = ("matplotlib", "networkx")
_TAG = re.compile(r"<[^>]+>")
_SPACE = re.compile(r"[ \t]+")
_MIN_CHARACTERS = 2000  # with it a document has some 3 KB on average, as web text has


def write_corpus(path: Path) -> None:
    """Write botocore's documentation, source code and the Factbook, each text once."""
    factbook = path.with_name("factbook.jsonl")
    write_factbook(factbook)
    write_texts(path, dict.fromkeys([*_botocore_texts(), *_source_texts(), *texts_of(factbook)]))


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write one JSON line {"text"} per document."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def texts_of(path: Path) -> list[str]:
    """The documents of a .jsonl file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def _botocore_texts() -> Iterator[str]:
    """The documentation of operations with their inputs and outputs, and of other shapes, some to a document."""
    for path in sorted((_folder_of("botocore") / "data").rglob("service-2.json.gz")):
        service = json.loads(gzip.decompress(path.read_bytes()))
        shapes = service["shapes"]
        parts = [service.get("documentation")]
        for operation in service["operations"].values():
            names = [operation[side]["shape"] for side in ("input", "output") if side in operation]
            parts += [operation, *(shapes.pop(name) for name in names if name in shapes)]
        text = ""
        for part in [*parts, *shapes.values()]:
            text += "".join(f"{line}\n\n" for line in _documentation(part))
            if len(text) >= _MIN_CHARACTERS:
                yield text
                text = ""


def _documentation(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield _SPACE.sub(" ", html.unescape(_TAG.sub(" ", part))).strip()
    elif isinstance(part, dict):
        for name, value in part.items():
            if name == "documentation" or isinstance(value, dict):
                yield from _documentation(value)


def _source_texts() -> Iterator[str]:
    for package in SOURCE_CODE_OF:
        for path in sorted(_folder_of(package).rglob("*.py")):
            text = path.read_text("utf-8")
            if len(text) >= _MIN_CHARACTERS:
                yield text


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec and spec.origin, f"{package} is installed with this project"
    return Path(spec.origin).parent
