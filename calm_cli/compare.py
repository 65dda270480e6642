"""`calm compare`: which of several models is better, on the same documents, and how sure that is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from calm_cli.inputs import require
from calm_cli.options import JsonOption
from calm_cli.result import document, print_json
from calm_cli.screen import Screen
from calm_cli.summary import aligned
from calm_cli.tables import show_table
from calm_core.errors import CalmError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import Difference, EvaluationFacts, ScoreDifference
from calm_core.telemetry.mlflow_run import REGISTERED
from pipelines.local.home import Home

if TYPE_CHECKING:
    from calm_core.evaluation.comparison_plot import PlotFormat

_SEED = 0
_PLOT_FORMATS = ("png", "svg", "pdf")
_BAR_WIDTH = 41
_MARKS = {"zero": "│", "line": "─", "crossing": "┼", "low": "├", "high": "┤", "value": "●"}
_PLAIN_MARKS = {"zero": "|", "line": "-", "crossing": "+", "low": "[", "high": "]", "value": "o"}

Evaluations = Mapping[str, Artifact[EvaluationFacts]]
"""By what the user calls them."""


def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="EVALUATION",
            help="Two or more evaluations of `calm evaluate`, or registered models, whose versions carry theirs. All "
            "others are compared with the first.",
            show_default=False,
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw it, into a file that ends in .svg, .png or .pdf."),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(min=0.5, max=0.999, help="Of the intervals; a model is called better if p is at most 1 less it."),
    ] = 0.95,
    resamples: Annotated[
        int, typer.Option(min=1000, max=1_000_000, help="How often documents are drawn; more make p finer.")
    ] = 10_000,
    json_: JsonOption = False,
) -> None:
    """Tell which of several models is better, on the same held-out documents, and how sure that is.

    The difference counts, not whether two intervals overlap: both models met the same easy and hard documents, so it
    is known much better than each score. Its interval is where it would lie on other documents of this kind; p is how
    often two equally good models lie as far apart by chance. Of several comparisons at once some succeed by chance, so
    the corrected p decides.

    A model is called better or worse by BrierLM alone; Brier-1 to Brier-4 show where the difference lies. What was
    measured on other data, or by another protocol, is refused.

    Examples:

      calm compare out/baseline out/evaluation

      calm compare models:/calm@champion out/evaluation --plot comparison.svg

      calm compare out/baseline out/evaluation models:/calm/1 --json
    """
    file_format = _format_of(plot)
    with ExitStack() as stack:
        found = {uri: _evaluation(uri, stack) for uri in dict.fromkeys(evaluations)}
        if len(found) < 2:
            raise ConfigError(f"EVALUATION: {evaluations[0]} is compared with nothing; name two or more")
        differences = _compared(found, resamples, confidence)
        if plot is not None:
            _draw(plot, file_format, found, differences)
        if json_:
            print_json(_as_json(found, differences))
        else:
            _show(found, differences, Screen())


def _evaluation(uri: str, stack: ExitStack) -> Artifact[EvaluationFacts]:
    """The evaluation that an argument names; that of a registered model is here until the stack is unwound."""
    if not uri.startswith(REGISTERED):
        return require("EVALUATION", uri, EvaluationFacts)
    from calm_core.weights.registered import registered_evaluation
    from pipelines.local.tracking import read_tracking

    read_tracking(Home.find(make=False))
    found = stack.enter_context(registered_evaluation(uri))
    if found is None:
        raise CalmError(
            f"{uri}: was registered by an earlier version, without its evaluation; `calm evaluate {uri}` makes one"
        )
    return found


def _compared(found: Evaluations, resamples: int, confidence: float) -> list[Difference]:
    from calm_core.evaluation.comparison import compare_evaluations

    base, *others = found.values()
    try:
        return compare_evaluations(base, others, resamples=resamples, confidence=confidence, seed=_SEED)
    except CalmError as error:
        message = str(error)
        for uri, evaluation in found.items():  # that of a registered model lies where nobody has put it
            message = message.replace(evaluation.uri, uri)
        raise CalmError(message) from None


def _format_of(plot: Path | None) -> str:
    """Refuse a picture that could not be written, before the work."""
    if plot is None:
        return ""
    ending = plot.suffix.lower().removeprefix(".")
    if ending not in _PLOT_FORMATS:
        raise ConfigError(f"--plot: expected a file that ends in .svg, .png or .pdf (got {plot})")
    if plot.is_dir() or not plot.absolute().parent.is_dir():
        why = "is a folder" if plot.is_dir() else "lies in a folder that is not there"
        raise ConfigError(f"--plot: {plot} {why}; name a file in a folder that is there")
    return ending


def _draw(plot: Path, file_format: str, found: Evaluations, differences: Sequence[Difference]) -> None:
    from calm_core.evaluation.comparison_plot import draw

    names = [f"{number}  {one.facts.model}" for number, one in enumerate(found.values(), 1)]
    scores = [one.facts.brierlm for one in found.values()]
    try:
        plot.write_bytes(draw(names, scores, differences, cast("PlotFormat", file_format)))
    except OSError as error:
        raise CalmError(f"--plot: {plot} cannot be written ({error.strerror or error})") from None


def _as_json(found: Evaluations, differences: Sequence[Difference]) -> dict[str, Any]:
    uris = list(found)
    return {
        "evaluations": [document(one) | {"uri": uri} for uri, one in found.items()],
        "differences": [
            {"uri": uri, "less": uris[0], "verdict": each.verdict} | each.model_dump(mode="json")
            for uri, each in zip(uris[1:], differences, strict=True)
        ],
    }


def _show(found: Evaluations, differences: Sequence[Difference], console: Console) -> None:
    _show_models(found, console)
    base, *others = found.values()
    for number, (evaluation, difference) in enumerate(zip(others, differences, strict=True), 2):
        console.print()
        _show_difference(number, base, evaluation, difference, console)
    console.print()
    _show_bars(differences, console)


def _show_models(found: Evaluations, console: Console) -> None:
    scores = aligned([one.facts.brierlm for one in found.values()])
    rows = [
        [str(number), one.facts.model, score, uri]
        for number, (score, (uri, one)) in enumerate(zip(scores, found.items(), strict=True), 1)
    ]
    show_table(["", "model", "BrierLM", "evaluation"], rows, console)


def _show_difference(
    number: int,
    base: Artifact[EvaluationFacts],
    evaluation: Artifact[EvaluationFacts],
    difference: Difference,
    console: Console,
) -> None:
    """A table of one comparison: what has which value in both, and the difference."""
    measures = {"BrierLM": difference.brierlm} | {f"Brier-{n}": term for n, term in difference.brier.items()}
    values, others = (one.facts.shown() for one in (evaluation, base))
    scales = {name: 1 if name == "BrierLM" else 100 for name in measures}
    rows = [
        [name, f"{others[name].value:z.2f}", f"{values[name].value:z.2f}", *_told(each, scales[name])]
        for name, each in measures.items()
    ]
    accuracies = [one.facts.autoencoder_accuracy for one in (base, evaluation)]
    if None not in accuracies:
        one, other = (100 * cast(float, accuracy) for accuracy in accuracies)
        rows.append(
            ["token accuracy", f"{one:.2f}", f"{other:.2f}", f"{other - one:+z.2f}", *[""] * (len(rows[0]) - 4)]
        )
    corrected = [] if difference.brierlm.corrected_p_value is None else ["corrected p"]
    heading = [f"{number} against 1, x 100", "1", str(number), f"{number} less 1", "p", *corrected]
    show_table(heading, rows, console, right=range(1, len(heading)))
    console.print(_sentence(number, difference), soft_wrap=True)


def _told(each: ScoreDifference, scale: float) -> Iterator[str]:
    shown = each.times(scale)
    yield f"{shown.value:+z.2f} {shown.interval()}"
    yield f"{each.p_value:.2g}"
    if each.corrected_p_value is not None:
        yield f"{each.corrected_p_value:.2g}"


def _sentence(number: int, difference: Difference) -> str:
    """The verdict in words."""
    p = f"p = {difference.brierlm.deciding_p_value:.2g} on {difference.documents:,} documents"
    match difference.verdict:
        case "undecided":
            return f"{number} and 1 cannot be told apart ({p}); more held-out text might"
        case verdict:
            return f"{number} is {verdict} than 1 ({p})"


def _show_bars(differences: Sequence[Difference], console: Console) -> None:
    """The intervals of BrierLM's differences below each other, around zero."""
    found = [each.brierlm for each in differences]
    ends = [0.0, *(end for each in found for end in (each.value, each.low, each.high) if end is not None)]
    least, width = min(ends), max(ends) - min(ends)
    if not width:
        return
    marks = _PLAIN_MARKS if console.options.ascii_only else _MARKS

    def place(value: float) -> int:
        return round((value - least) / width * (_BAR_WIDTH - 1))

    rows = []
    for number, each in enumerate(found, 2):
        bar = [" "] * _BAR_WIDTH
        bar[place(0)] = marks["zero"]
        if each.low is not None and each.high is not None:
            low, high = place(each.low), place(each.high)
            bar[low : high + 1] = marks["line"] * (high + 1 - low)
            if low < place(0) < high:
                bar[place(0)] = marks["crossing"]
            bar[low], bar[high] = marks["low"], marks["high"]
        bar[place(each.value)] = marks["value"]
        rows.append([f"{number} less 1", "".join(bar)])
    scale = f"{least:z.2f}".ljust(_BAR_WIDTH - 8) + f"{max(ends):z.2f}".rjust(8)
    show_table(["BrierLM", scale], rows, console)
