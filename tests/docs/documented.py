"""The commands and snippets of the documentation, as a reader would copy them."""

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from calm_cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Documented:
    """Something to run.

    Attributes:
        where: The page, or the command whose help says it.
        text: A command line, or a snippet.
        is_named: It stands in a sentence, which may name a command without all that it needs.
    """

    where: str
    text: str
    is_named: bool = False


def blocks(language: str) -> Iterator[Documented]:
    """The fenced blocks of a language."""
    for page in PAGES:
        for found, text in _FENCE.findall(page.read_text(encoding="utf-8")):
            if found == language:
                yield Documented(str(page.relative_to(ROOT)), text)


def commands() -> list[Documented]:
    """Every command line once: fenced blocks, inline code that begins with calm, the examples of --help."""
    found: dict[str, Documented] = {}
    for each in [*_fenced(), *_inline(), *_examples()]:
        for part in each.text.split(" && "):
            words = shlex.split(part, comments=True)
            if words:
                found.setdefault(shlex.join(words).replace("'>'", ">"), replace(each, text=part))
    return list(found.values())


def _fenced() -> Iterator[Documented]:
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").replace("|\n", "| ").splitlines():
            yield Documented(block.where, line)


def _inline() -> Iterator[Documented]:
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for command in re.findall(r"`(calm [^`<]*)`", text):
            yield Documented(str(page.relative_to(ROOT)), " ".join(command.split()), is_named=True)


def _examples() -> Iterator[Documented]:
    """Paragraphs of a command's help that are a command."""
    for name, command in [("calm", typer.main.get_command(app)), *_all_commands(typer.main.get_command(app), "calm")]:
        for paragraph in inspect.cleandoc(command.help or "").replace("\b", "").split("\n\n"):
            line = " ".join(paragraph.split())
            if line.startswith("calm "):
                yield Documented(f"{name} --help", line)


def _all_commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(group, TyperGroup):
        for child, command in group.commands.items():
            yield f"{name} {child}", command
            yield from _all_commands(command, f"{name} {child}")
