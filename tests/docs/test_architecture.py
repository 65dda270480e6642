"""docs/architecture.md against the code: its diagram is the import graph, and the files that it names exist."""

import re
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
EVERYWHERE = {"calm_core", "errors", "shown"}  # the package itself, and what every room may raise and show: not drawn

Arrow = tuple[str, str]


def room_of(module: str) -> str:
    """A sub-package of calm_core by its own name, any other top-level package by its."""
    first, *rest = module.split(".")
    return rest[0] if first == "calm_core" and rest else first


def imports() -> set[Arrow]:
    graph = grimp.build_graph("calm_core", "components", "pipelines", "calm_cli")
    arrows = {
        (room_of(module), room_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return {(a, b) for a, b in arrows if a != b and not {a, b} & EVERYWHERE}


def without_detours(arrows: set[Arrow]) -> set[Arrow]:
    """The arrows that are not implied by a path of others."""

    def reaches(start: str, end: str, skipped: Arrow) -> bool:
        nexts = [b for a, b in arrows if a == start and (a, b) != skipped]
        return any(b == end or reaches(b, end, skipped) for b in nexts)

    return {arrow for arrow in arrows if not reaches(*arrow, skipped=arrow)}


def test_the_diagram_is_the_import_graph() -> None:
    diagram = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    assert diagram is not None
    drawn = set(re.findall(r"^\s*(\w+)(?:\[[^\]]*\])? --> (\w+)", diagram[1], re.MULTILINE))
    assert drawn == without_detours(imports())


def test_every_path_that_is_named_exists() -> None:
    named = re.findall(r"`((?:calm_core|calm_cli|components|pipelines|tests|docs|docker|benchmarks)/[\w/.\-]*)`", PAGE)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
