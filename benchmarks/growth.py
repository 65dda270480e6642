"""How BrierLM grows with training FLOPs: CALM at several K and the token-level baseline, on the default corpus.

Each model is trained at shares of the profile's budget, with its whole schedule each time, as `equal_compute` does it.
BrierLM against log2(FLOPs) gets a straight line for each model: its slope is what a doubling gives. Intervals draw
held-out documents, the same for all models, and seeds, with replacement. Inside the range a line is a summary; beyond
it, and for other data, shapes or vocabularies, it says nothing.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.equal_compute import Laboratory, arguments_of, training_flops
from calm_core.evaluation.brier import brierlm
from calm_core.evaluation.comparison import require_same_protocol
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.resampling import with_interval
from calm_core.store.facts import Score

Floats = npt.NDArray[np.float64]
_RESAMPLES, _CONFIDENCE = 1000, 0.95


def main() -> None:
    """Train, score, fit, and print a table; the picture lies beside the runs."""
    parser = arguments_of(__doc__, "growth", ".calm/growth")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.125, 0.25, 0.5, 1.0], help="of the budget")
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[1, 2, 4], help="K of the CALM models")
    arguments = parser.parse_args()
    laboratory = Laboratory(arguments.output, arguments.profile, arguments.set)
    config = laboratory.configure()
    intervals = [config.evaluation.interval(k, config.data.sequence_length) for k in (1, *arguments.chunk_sizes)]
    if len(set(intervals)) > 1:
        common = math.lcm(*intervals)
        parser.error(f"not all K are scored at the same positions; add --set evaluation.position_interval={common}")
    budgets = [share * training_flops(config) for share in arguments.shares]
    console = Console(width=140)
    table = Table("model", *(f"{budget:.2g} FLOPs" for budget in budgets), "a doubling gives", box=None)
    curves: dict[str, list[Score]] = {}
    scores = []
    for chunk_size in (*arguments.chunk_sizes, None):
        runs = [laboratory.runs(chunk_size, budget, arguments.seeds) for budget in budgets]
        scores += [score for one in runs for score in one.scores]
        require_same_protocol(scores)
        points, slope = fitted(budgets, [[DocumentScores.read(score) for score in one.scores] for one in runs])
        name = "Transformer" if chunk_size is None else f"CALM, K {chunk_size}"
        curves[name] = points
        table.add_row(name, *map(_text, [*points, slope]))
    console.print(table)
    console.print(f"seeds {arguments.seeds}; {_CONFIDENCE:.0%} intervals over documents and seeds", highlight=False)
    picture = Path(arguments.output) / "growth.svg"
    picture.write_bytes(drawn(budgets, curves))
    console.print(f"picture: {picture}", highlight=False)


def fitted(budgets: Sequence[float], documents: Sequence[Sequence[DocumentScores]]) -> tuple[list[Score], Score]:
    """BrierLM of each budget, the mean of its seeds, and the slope of the line over log2(FLOPs).

    Args:
        budgets: FLOPs, at least two.
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


def drawn(budgets: Sequence[float], curves: dict[str, list[Score]]) -> bytes:
    """The picture, SVG: a line for each model, with its intervals."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (name, points), mark in zip(curves.items(), "osD^vP", strict=False):
        values = [point.value for point in points]
        low = [point.value - (point.value if point.low is None else point.low) for point in points]
        high = [(point.value if point.high is None else point.high) - point.value for point in points]
        axes.errorbar(budgets, values, yerr=[low, high], marker=mark, capsize=3, label=name)
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="BrierLM")
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _text(score: Score) -> str:
    return escape(f"{score.value:.2f} {score.interval()}")


if __name__ == "__main__":
    main()
