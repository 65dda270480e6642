"""How BrierLM grows with training FLOPs, of models that `calm sweep` has trained at several budgets and seeds.

BrierLM against log2(FLOPs) gets a straight line for each model: its slope is what a doubling gives. Intervals draw
held-out documents, the same for all models, and seeds, with replacement. Inside the range a line is a summary; beyond
it, and for other data, shapes or vocabularies, it says nothing. The last column is the correlation of BrierLM with the
logarithm of perplexity over a model's runs; of CALM it is the upper bound from the same samples. docs/quality.md has
the sweeps.
"""

import argparse
import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calm_core.errors import CalmError
from calm_core.evaluation.brier import brierlm
from calm_core.evaluation.comparison import require_same_protocol
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.resampling import with_interval
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts, Score

Floats = npt.NDArray[np.float64]
Evaluations = Sequence[Artifact[EvaluationFacts]]
_RESAMPLES, _CONFIDENCE = 1000, 0.95


def main() -> None:
    """Fit, and print a table; the picture lies where it is told."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("evaluations", nargs="+", help="of all models, e.g. out/growth/*/evaluation")
    parser.add_argument("--picture", default="growth.svg", help="where to draw it")
    arguments = parser.parse_args()
    try:
        evaluations = [Artifact(path, EvaluationFacts) for path in arguments.evaluations]
        require_same_protocol(evaluations)
        models = grouped(evaluations)
    except CalmError as error:
        parser.error(str(error))
    columns = sorted({flops for budgets in models.values() for flops in budgets})
    table = Table(
        "model", "seeds", "untrained", *(f"{flops:.2g} FLOPs" for flops in columns), "a doubling gives", "r", box=None
    )
    curves = {}
    for name, budgets in models.items():
        points, slope = fitted(
            [*budgets], [[DocumentScores.read(each) for each in seeds] for seeds in budgets.values()]
        )
        curves[name] = dict(zip(budgets, points, strict=True))
        runs = [each for seeds in budgets.values() for each in seeds]
        untrained = statistics.mean(each.facts.references.untrained.brierlm.value for each in runs)
        cells = [_text(curves[name].get(flops)) for flops in columns]
        r = correlation([each.facts for each in runs])
        told = "" if r is None else f"{r:.3f}"
        table.add_row(name, f"{len(runs) // len(budgets)}", f"{untrained:.1f}", *cells, _text(slope), told)
    console = Console(width=200)
    console.print(table)
    console.print(
        f"BrierLM, {_CONFIDENCE:.0%} intervals over documents and seeds; r: with log perplexity", highlight=False
    )
    Path(arguments.picture).write_bytes(drawn(curves))
    console.print(f"picture: {arguments.picture}", highlight=False)


def grouped(evaluations: Evaluations) -> dict[str, dict[float, Evaluations]]:
    """Evaluations by model and by its training FLOPs, the least first; what is within 5 % is one budget.

    Raises:
        CalmError: A model has more seeds at one budget than at another, or does not tell its FLOPs.
    """
    models: dict[str, dict[float, Evaluations]] = {}
    budget = 0.0
    for each in sorted(evaluations, key=_flops):
        budget = budget if _flops(each) < 1.05 * budget else _flops(each)  # whole steps never cost just as much
        budgets = models.setdefault(each.facts.model, {})
        budgets[budget] = [*budgets.get(budget, []), each]
    for name, budgets in models.items():
        if len({len(seeds) for seeds in budgets.values()}) > 1:
            told = ", ".join(f"{len(seeds)} at {flops:.2g}" for flops, seeds in budgets.items())
            raise CalmError(f"{name}: not as many seeds at each budget ({told} FLOPs); give as many of each")
    return dict(sorted(models.items()))


def _flops(evaluation: Artifact[EvaluationFacts]) -> float:
    """Of training the language model, without its autoencoder."""
    costs = evaluation.facts.costs
    cost = costs.get("calm") or costs.get("transformer")
    if not (cost and cost.flops):
        raise CalmError(f"{evaluation.uri}: does not tell the FLOPs that the model was trained with")
    return cost.flops


def correlation(models: Sequence[EvaluationFacts]) -> float | None:
    """Of BrierLM with the logarithm of perplexity, or of its upper bound, over three models or more that have it."""
    found = [
        (math.log(facts.language_model.perplexity.value), facts.brierlm.value)
        for facts in models
        if facts.language_model and facts.language_model.perplexity
    ]
    return float(np.corrcoef(np.array(found).T)[0, 1]) if len(found) > 2 else None


def fitted(budgets: Sequence[float], documents: Sequence[Sequence[DocumentScores]]) -> tuple[list[Score], Score | None]:
    """BrierLM of each budget, the mean of its seeds, and the slope of the line over log2(FLOPs).

    Args:
        budgets: FLOPs. Of a single one there is no line.
        documents: Scores of the same documents, by budget and seed.
    """
    counts = documents[0][0].counts_D
    sums = np.array([[one.sums_DT for one in seeds] for seeds in documents])  # [budgets, seeds, D, 4]
    generator = np.random.default_rng(0)
    times = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_RESAMPLES)
    drawn_documents = _scores(sums, counts, times)  # [X, budgets, seeds]
    seeds = generator.integers(sums.shape[1], size=drawn_documents.shape)
    resampled = np.take_along_axis(drawn_documents, seeds, axis=2).mean(2)
    values = _scores(sums, counts, np.ones((1, len(counts)))).mean(2)
    doublings = np.log2(np.asarray(budgets))
    points = [with_interval(float(values[0, i]), resampled[:, i], _CONFIDENCE, counts) for i in range(len(budgets))]
    if len(budgets) < 2:
        return points, None
    slope = with_interval(float(_slope(doublings, values)[0]), _slope(doublings, resampled), _CONFIDENCE, counts)
    return points, slope


def _scores(sums: Floats, counts: Floats, times: npt.NDArray[np.int64] | Floats) -> Floats:
    """BrierLM [X, budgets, seeds] where document d is taken `times[x, d]` times."""
    totals = np.einsum("xd,bsdt->xbst", times.astype(float), sums)
    return brierlm(totals / (times @ counts)[:, None, None, None])


def _slope(doublings: Floats, values: Floats) -> Floats:
    """Of the least-squares line through each row of values [X, budgets]."""
    centred = doublings - doublings.mean()
    slope: Floats = (values * centred).sum(1) / (centred**2).sum()
    return slope


def drawn(curves: Mapping[str, Mapping[float, Score]]) -> bytes:
    """The picture, SVG: a line for each model, with its intervals."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, ((name, line), mark) in enumerate(zip(curves.items(), itertools.cycle("osD^vP"))):
        points = list(line.values())
        values = [point.value for point in points]
        low = [point.value - (point.value if point.low is None else point.low) for point in points]
        high = [(point.value if point.high is None else point.high) - point.value for point in points]
        beside = [flops * 1.02**number for flops in line]  # or the intervals of a budget would hide each other
        axes.errorbar(beside, values, yerr=[low, high], marker=mark, capsize=3, elinewidth=0.8, label=name)
    budgets = sorted({flops for line in curves.values() for flops in line})
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="BrierLM")
    axes.set_xticks(budgets, [f"{flops:.2g}" for flops in budgets])
    axes.minorticks_off()
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _text(score: Score | None) -> str:
    return escape(f"{score.value:.2f} {score.interval()}") if score else ""


if __name__ == "__main__":
    main()
