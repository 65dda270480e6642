"""What a finished run has made, as tables."""

import shlex
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from calm_cli.board import Board
from calm_cli.display import clock
from calm_cli.options import DEFAULT_MODEL
from calm_cli.tables import show_pairs, show_table
from calm_core.shown import lines_of, visible
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import (
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    ModelFacts,
    RegistrationFacts,
    ReportFacts,
    Score,
    TextSample,
    TransformerFacts,
)
from pipelines.local.run import BASELINE_MODEL, BASELINE_REPORT, RUN_REPORT

REPORT_NAME = "report.html"
_SHOWN_REJECTS = 5
_SHOWN_SAMPLES = 3
_PROMPT_WIDTH = 40
_COMMAND_WIDTH = 50


@dataclass(frozen=True)
class Baseline:
    """The Transformer of a run that trains one, and its scores."""

    model: Artifact[TransformerFacts]
    report: Artifact[EvaluationFacts]

    @classmethod
    def read(cls, uris: Mapping[str, str]) -> "Baseline | None":
        """Open the artifacts at the URIs, if they are there."""
        if BASELINE_MODEL not in uris or BASELINE_REPORT not in uris:
            return None
        return cls(Artifact(uris[BASELINE_MODEL], TransformerFacts), Artifact(uris[BASELINE_REPORT], EvaluationFacts))


@dataclass(frozen=True)
class Finished:
    """The artifacts of a run, by the names of the pipeline's outputs."""

    dataset: Artifact[DatasetFacts]
    autoencoder_model: Artifact[AutoencoderFacts]
    calm_model: Artifact[CalmFacts]
    evaluation_report: Artifact[EvaluationFacts]
    registration: Artifact[RegistrationFacts]
    run_report: Artifact[ReportFacts]
    baseline: Baseline | None = None

    @classmethod
    def read(cls, uris: Mapping[str, str]) -> "Finished":
        """Open the artifacts at the URIs."""
        return cls(
            Artifact(uris["dataset"], DatasetFacts),
            Artifact(uris["autoencoder_model"], AutoencoderFacts),
            Artifact(uris["calm_model"], CalmFacts),
            Artifact(uris["evaluation_report"], EvaluationFacts),
            Artifact(uris["registration"], RegistrationFacts),
            Artifact(uris[RUN_REPORT], ReportFacts),
            Baseline.read(uris),
        )

    @property
    def report(self) -> str:
        """URI of the page about the run."""
        return storage.join(self.run_report.uri, self.run_report.facts.page.path)

    def scores(self) -> dict[str, float]:
        """The headline numbers, for the run in MLflow."""
        facts = self.evaluation_report.facts
        scores = {f"brier_{n}": score.value for n, score in facts.brier.items()} | {"brierlm": facts.brierlm.value}
        accuracy = facts.autoencoder_accuracy
        return scores if accuracy is None else {"autoencoder_accuracy": accuracy} | scores


def data_lines(facts: DatasetFacts) -> Iterator[tuple[str, str]]:
    """What became of the documents."""
    kept = ", ".join(f"{split.documents:,} {name}" for name, split in facts.splits.items())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts.rejected.items() if count)
    yield "documents", f"{facts.documents_in:,} read: {kept}"
    yield "rejected", f"{sum(facts.rejected.values()):,}" + (f" ({reasons})" if reasons else "")
    for example in facts.reject_examples[:_SHOWN_REJECTS]:
        yield "", example
    near = f" and {facts.near_duplicates:,} near-duplicates" if facts.near_duplicates else ""
    yield "duplicates dropped", f"{facts.duplicates:,}{near}"
    if facts.changed_documents or facts.unknown_tokens:
        yield "changed by the tokenizer", f"{facts.changed_documents:,}, {facts.unknown_tokens:,} unknown tokens"
    yield "tokens", ", ".join(f"{split.tokens:,} {name}" for name, split in facts.splits.items())


def score_lines(facts: EvaluationFacts) -> dict[str, str]:
    """A model's scores with their intervals below each other, and what BrierLM is compared with; all times 100."""
    scores = _scores_by_name(facts)
    return dict(zip(scores, aligned(scores.values()), strict=True))


def _scores_by_name(facts: EvaluationFacts) -> dict[str, Score]:
    brierlm, *terms = facts.shown().items()
    references = {
        "  token frequency": facts.references.unigram.brierlm,
        "  untrained": facts.references.untrained.brierlm,
    }
    return dict([brierlm]) | references | dict(terms)


def aligned(scores: Collection[Score]) -> list[str]:
    """Scores and their intervals as texts of equal width, with two decimals."""
    columns = [
        [f"{score.value:z.2f}" for score in scores],
        ["" if score.low is None else f"{score.low:z.2f}" for score in scores],
        ["" if score.high is None else f"{score.high:z.2f}" for score in scores],
    ]
    for place, column in enumerate(columns):
        columns[place] = [text.rjust(max(map(len, column))) for text in column]
    return [
        f"{value} {score.interval() if score.low is None else f'[{low}, {high}]'}"
        for score, value, low, high in zip(scores, *columns, strict=True)
    ]


def models_side_by_side(finished: Finished) -> Iterator[list[str]]:
    """The models of a run side by side, their names first: how good they are, how large, and how quick."""
    evaluations = {"CALM": finished.evaluation_report.facts}
    models: list[ModelFacts] = [finished.calm_model.facts]
    if finished.baseline is not None:
        evaluations["Transformer"] = finished.baseline.report.facts
        models.append(finished.baseline.model.facts)
    models.append(finished.autoencoder_model.facts)
    yield ["scores x 100", *evaluations, "autoencoder"]
    columns = [score_lines(facts) for facts in evaluations.values()]
    yield from ([name, *(column[name] for column in columns), ""] for name in columns[0])
    accuracy = finished.evaluation_report.facts.autoencoder_accuracy
    yield ["token accuracy", *[""] * len(evaluations), "" if accuracy is None else f"{accuracy:.2%}"]
    yield ["parameters", *(f"{model.parameters:,}" for model in models)]
    for name in dict.fromkeys(name for model in models for name in model.went_wrong):
        yield [name.replace("_", " "), *(f"{model.went_wrong.get(name, 0):,}" for model in models)]
    yield ["training time", *(clock(model.seconds) for model in models)]
    yield ["training tokens/s", *(f"{model.tokens_per_second:,.0f}" for model in models)]
    rates = [facts.generation_tokens_per_second for facts in evaluations.values()]
    if any(rates):  # without prompts nothing is written
        yield ["writing tokens/s", *(f"{rate:,.0f}" for rate in rates), ""]


def time_lines(board: Board) -> Iterator[tuple[str, str]]:
    """How long a finished run took, and what it found done."""
    yield "total time", clock(board.seconds(now=0))
    if cached := ", ".join(row.stage for row in board.rows if row.state == "cached"):
        yield "from the cache", cached


def next_lines(finished: Finished, command: Sequence[str]) -> Iterator[str]:
    """What has been registered, and commands to go on with.

    Args:
        finished: The run.
        command: That started it.
    """
    registration = finished.registration.facts
    name, uri = registration.model_name, registration.model_uri
    if registration.promoted:
        uri = f"models:/{name}@{registration.alias}"
    reason = f"; {registration.reason}" if registration.reason else ""
    yield f"registered: {name} version {registration.version} ({uri}){reason}"
    yield ""
    yield "next:"
    model = "" if uri == DEFAULT_MODEL else f" --model {shlex.quote(uri)}"
    prompt = _short_prompt(finished.evaluation_report.facts.samples)
    commands = {
        f"calm generate {prompt}{model} --temperature 0.5 --seed 1": "",
        f"{shlex.join(command)} --set calm.learning_rate=5e-4": "reruns only what depends on it",
        "calm runs": "all runs, and where what they made lies",
        "calm report": "opens the page about the newest run",
        "calm ui": "curves, settings, lineage",
    }
    width = max(len(line) for line, about in commands.items() if about and len(line) <= _COMMAND_WIDTH)
    for line, about in commands.items():
        yield f"  {line:<{width}}   # {about}" if about else f"  {line}"
    yield ""
    yield f"report: {finished.report}"


def _short_prompt(samples: Sequence[TextSample]) -> str:
    """Words of the first prompt's last line, as a shell takes them."""
    lines = visible(samples[0].prompt, keep="\n").strip().splitlines() if samples else []
    return shlex.quote(textwrap.shorten(lines[-1], _PROMPT_WIDTH, placeholder="") or "...") if lines else "'...'"


def show(finished: Finished, board: Board, console: Console, command: Sequence[str]) -> None:
    """Print the run's tables, its texts, and where to go from here.

    Args:
        finished: What it has made.
        board: How it went.
        console: Where.
        command: That started it.
    """
    show_pairs(data_lines(finished.dataset.facts), console)
    console.print()
    heading, *rows = models_side_by_side(finished)
    show_table(heading, rows, console)
    console.print()
    show_pairs(time_lines(board), console)
    console.print()
    samples = finished.evaluation_report.facts.samples
    for sample in samples[:_SHOWN_SAMPLES]:
        console.print(Text.assemble((lines_of(sample.prompt), "bold"), lines_of(sample.text)), soft_wrap=True)
        console.print()
    if len(samples) > _SHOWN_SAMPLES:
        console.print(f"{len(samples) - _SHOWN_SAMPLES:,} more texts are in the report\n")
    for line in next_lines(finished, command):
        console.print(line, soft_wrap=True)
