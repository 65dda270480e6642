"""A sweep's table and pictures, as they are shown on a terminal and on its page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from calm_core.config.base import as_written
from calm_core.evaluation import pictures
from calm_core.evaluation.report import render_sweep
from calm_core.store.facts import Score
from pipelines.sweeps.plan import FLOPS, Plan, differing
from pipelines.sweeps.results import Pooled

_LOGARITHMIC = 5.0
"""Positive values that are as far apart as this are shown on a logarithmic scale."""


def best_first(rows: Sequence[Pooled]) -> list[Pooled]:
    """Choices of settings by their score; of several rungs the last one leads, since budgets are not compared."""
    return sorted(rows, key=lambda row: (-_rung(row), -row.brierlm.value if row.brierlm else math.inf))


def table(plan: Plan, rows: Sequence[Pooled]) -> tuple[list[str], list[list[str]]]:
    """The heading and the lines of all choices of settings, the best one first."""
    names = differing(plan)
    models = len({each.model for each in plan.candidates}) > 1
    heading = (
        (["model"] if models else [])
        + [*names, *(["steps"] if plan.rungs > 1 or FLOPS in names else [])]
        + ["seeds", "BrierLM", "interval", "spread", "FLOPs", "minutes"]
    )
    lines = []
    for row in best_first(rows):
        cells = {"model": row.candidate.model, "steps": f"{row.steps:,}"}
        cells |= {name: _value(row.candidate.settings.get(name)) for name in names}
        cells |= {
            "seeds": f"{len(row.seeds)}" + (f" ({row.failed} failed)" if row.failed else ""),
            "BrierLM": f"{row.brierlm.value:z.2f}" if row.brierlm else "",
            "interval": row.brierlm.interval() if row.brierlm and row.brierlm.low is not None else "",
            "spread": "" if row.spread is None else f"{row.spread:.2f}",
            "FLOPs": f"{row.flops:.3g}",
            "minutes": "" if row.seconds is None else f"{row.seconds / 60:.1f}",
        }
        lines.append([cells[name] for name in heading])
    return heading, lines


def page(title: str, plan: Plan, rows: Sequence[Pooled]) -> str:
    """The page of a sweep; equal results give equal bytes."""
    return render_sweep(title, *table(plan, rows), dict(_pictures(plan, rows)))


def _pictures(plan: Plan, rows: Sequence[Pooled]) -> Iterator[tuple[str, Markup]]:
    scored = [(row, row.brierlm) for row in rows if row.brierlm]
    if len({row.flops for row, _ in scored}) > 1:
        lines = _lines([(row.flops, score, _others(row, (FLOPS,))) for row, score in scored])
        yield "BrierLM against the FLOPs of training", pictures.scores_over("FLOPs of training", lines, scale="log")
    last = [(row, score) for row, score in scored if _rung(row) == plan.rungs - 1]
    for name in differing(plan):
        found = [(row, score) for row, score in last if name in row.candidate.settings]
        values = list(dict.fromkeys(_value(row.candidate.settings[name]) for row, _ in found))
        if name == FLOPS or len(values) < 2:
            continue
        numbers = [row.candidate.settings[name] for row, _ in found]
        are_numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        places = numbers if are_numbers else [values.index(_value(number)) for number in numbers]
        points = [
            (float(place), score, _others(row, (name,))) for place, (row, score) in zip(places, found, strict=True)
        ]
        is_wide = are_numbers and min(numbers) > 0 and max(numbers) >= _LOGARITHMIC * min(numbers)
        scale = "log" if is_wide else "linear"
        drawn = pictures.scores_over(name, _lines(points), () if are_numbers else values, scale)
        yield f"BrierLM against {name}", drawn


def _lines(points: Sequence[tuple[float, Score, str]]) -> Mapping[str, list[tuple[float, Score]]]:
    lines: dict[str, list[tuple[float, Score]]] = {}
    for value, score, name in points:
        lines.setdefault(name, []).append((value, score))
    return lines


def _others(row: Pooled, without: Sequence[str]) -> str:
    """What else the models of a line share."""
    settings = {name: value for name, value in row.candidate.settings.items() if name not in without}
    told = [f"{name.rpartition('.')[2]}={_value(value)}" for name, value in settings.items()]
    return " ".join([row.candidate.model, *told])


def _rung(row: Pooled) -> int:
    return [runs[0].steps for runs in row.candidate.rungs].index(row.steps)


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else as_written(value)
