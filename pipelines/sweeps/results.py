"""What a sweep has found: one row for each run, and one for each choice of settings with its seeds pooled."""

import csv
import io
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calm_core.evaluation.comparison import mean_score
from calm_core.evaluation.documents import DocumentScores
from calm_core.store.facts import Score
from pipelines.sweeps.plan import Candidate, Plan, Run, differing

CONFIDENCE = 0.95
NUMBERS = ("perplexity", "perplexity_bound", "parameters", "trained_tokens", "seconds")
"""What is told of a run beside its scores, where it is known; of CALM perplexity has an upper bound only."""
_RESAMPLES, _SEED = 10_000, 0


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Attributes:
        brierlm: With its interval over documents; None where it failed.
        brier: Mean Brier-1 to Brier-4, by n.
        documents: The same by document; None where they are not at hand.
        numbers: Of `NUMBERS`.
        evaluation: Where its scores lie.
    """

    run: Run
    brierlm: Score | None = None
    brier: Mapping[str, float] | None = None
    documents: DocumentScores | None = None
    numbers: Mapping[str, float] | None = None
    evaluation: str = ""


@dataclass(frozen=True)
class Pooled:
    """A choice of settings, at one budget.

    Attributes:
        steps: Of the language model.
        seeds: Of runs that did not fail.
        failed: How many did.
        brierlm: The mean over the seeds, with its interval over documents.
        spread: Standard deviation over the seeds, of two or more.
        flops: Of training one language model.
        seconds: Of training one, on average.
    """

    candidate: Candidate
    steps: int
    seeds: tuple[int, ...]
    failed: int
    brierlm: Score | None
    spread: float | None
    flops: float
    seconds: float | None


def pooled(plan: Plan, results: Mapping[str, Result]) -> list[Pooled]:
    """All choices whose runs have ended, in the order of the plan, rung by rung.

    Args:
        plan: Of the sweep.
        results: By the run's name.
    """
    rows = []
    for rung in range(plan.rungs):
        for candidate in plan.candidates:
            found = [results[run.name] for run in candidate.rungs[rung] if run.name in results]
            if found:
                rows.append(_pool(candidate, found))
    return rows


def _pool(candidate: Candidate, found: Sequence[Result]) -> Pooled:
    done = [(each, each.brierlm) for each in found if each.brierlm]
    values = [score.value for _, score in done]
    seconds = [each.numbers["seconds"] for each, _ in done if each.numbers and "seconds" in each.numbers]
    return Pooled(
        candidate,
        found[0].run.steps,
        seeds=tuple(each.run.config.seed for each, _ in done),
        failed=len(found) - len(done),
        brierlm=_mean(done),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        flops=found[0].run.flops,
        seconds=statistics.fmean(seconds) if seconds else None,
    )


def _mean(done: Sequence[tuple[Result, Score]]) -> Score | None:
    if len(done) < 2:
        return done[0][1] if done else None
    documents = [each.documents for each, _ in done if each.documents]
    if len(documents) == len(done):
        return mean_score(documents, resamples=_RESAMPLES, confidence=CONFIDENCE, seed=_SEED)
    return Score(value=statistics.fmean(score.value for _, score in done))


def run_rows(plan: Plan, results: Mapping[str, Result]) -> Iterator[dict[str, Any]]:
    """A row for each run that has ended, in the order of the plan, as plain values."""
    names = differing(plan)
    of_run = {run.name: each for each in plan.candidates for rung in each.rungs for run in rung}
    for run in plan.runs:
        if run.name not in results:
            continue
        result, settings = results[run.name], of_run[run.name].settings
        score = result.brierlm or None
        yield (
            {"run": run.name, "model": run.model}
            | {name: settings.get(name) for name in names}
            | {"seed": run.config.seed, "steps": run.steps, "state": "done" if score else "failed"}
            | {
                "brierlm": score and score.value,
                "brierlm_low": score and score.low,
                "brierlm_high": score and score.high,
            }
            | {f"brier_{n}": (result.brier or {}).get(str(n)) for n in range(1, 5)}
            | {"training_flops": run.flops}
            | {name: (result.numbers or {}).get(name) for name in NUMBERS}
            | {"evaluation": result.evaluation}
        )


def pooled_row(row: Pooled) -> dict[str, Any]:
    """One choice of settings, as plain values."""
    score = row.brierlm
    return {
        "model": row.candidate.model,
        "settings": dict(row.candidate.settings),
        "steps": row.steps,
        "seeds": list(row.seeds),
        "failed": row.failed,
        "brierlm": score and score.model_dump(mode="json"),
        "spread": row.spread,
        "training_flops": row.flops,
        "seconds": row.seconds,
    }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal columns; what is neither number nor text is written as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["run"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: json.dumps(value) if isinstance(value, list | dict | bool) else value for name, value in row.items()}
        )
    return text.getvalue()


def as_json(plan: Plan, results: Mapping[str, Result]) -> str:
    """All of it; equal results give equal texts."""
    document = {
        "settings": [pooled_row(row) for row in pooled(plan, results)],
        "runs": list(run_rows(plan, results)),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
