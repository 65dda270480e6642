"""What a finished run has made, as one table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calm_cli.board import Board
from calm_cli.display import clock
from calm_core.shown import lines_of, visible
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, DatasetFacts, EvaluationFacts, RegistrationFacts, Score

REPORT_NAME = "report.html"
_SHOWN_REJECTS = 5


@dataclass(frozen=True)
class Finished:
    """The artifacts of a run, by the names of the pipeline's outputs."""

    dataset: Artifact[DatasetFacts]
    autoencoder_model: Artifact[AutoencoderFacts]
    calm_model: Artifact[CalmFacts]
    evaluation_report: Artifact[EvaluationFacts]
    registration: Artifact[RegistrationFacts]

    @classmethod
    def read(cls, uris: Mapping[str, str]) -> "Finished":
        """Open the artifacts at the URIs."""
        return cls(
            Artifact(uris["dataset"], DatasetFacts),
            Artifact(uris["autoencoder_model"], AutoencoderFacts),
            Artifact(uris["calm_model"], CalmFacts),
            Artifact(uris["evaluation_report"], EvaluationFacts),
            Artifact(uris["registration"], RegistrationFacts),
        )

    @property
    def report(self) -> str:
        """URI of the evaluation's report."""
        return storage.join(self.evaluation_report.uri, REPORT_NAME)

    def scores(self) -> dict[str, float]:
        """The headline numbers, for the run in MLflow."""
        facts = self.evaluation_report.facts
        scores = {f"brier_{n}": score.value for n, score in facts.brier.items()} | {"brierlm": facts.brierlm.value}
        accuracy = facts.autoencoder_accuracy
        return scores if accuracy is None else {"autoencoder_accuracy": accuracy} | scores


def interval(score: Score, digits: int = 4) -> str:
    """A score with its confidence interval."""
    return f"{score.value:.{digits}f}  {score.interval(digits)}"


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


def score_lines(facts: EvaluationFacts) -> Iterator[tuple[str, str]]:
    """How good the model is, and what it is compared with."""
    if facts.autoencoder_accuracy is not None:
        yield "autoencoder token accuracy", f"{facts.autoencoder_accuracy:.2%}"
    for n, score in facts.brier.items():
        yield f"Brier-{n}", interval(score)
    yield "BrierLM", interval(facts.brierlm)
    yield "BrierLM, untrained model", interval(facts.references.untrained.brierlm)
    yield "BrierLM, unigram model", interval(facts.references.unigram.brierlm)


def speed_lines(finished: Finished) -> Iterator[tuple[str, str]]:
    """Tokens per second."""
    yield "autoencoder training", f"{finished.autoencoder_model.facts.tokens_per_second:,.0f} tokens/s"
    yield "CALM training", f"{finished.calm_model.facts.tokens_per_second:,.0f} tokens/s"
    if rate := finished.evaluation_report.facts.generation_tokens_per_second:  # without prompts nothing is written
        yield "generation", f"{rate:,.0f} tokens/s"


def show(finished: Finished, board: Board, console: Console) -> None:
    """Print the run's table, its texts, and where to go from here."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for lines in (
        data_lines(finished.dataset.facts),
        score_lines(finished.evaluation_report.facts),
        speed_lines(finished),
        (
            (row.stage, "cached" if row.state == "cached" else f"{clock(row.seconds(row.ended or 0.0))} min")
            for row in board.rows
        ),
    ):
        for name, value in lines:
            table.add_row(name, Text(visible(value)))
        table.add_section()
        table.add_row("", "")
    console.print(table)

    for sample in finished.evaluation_report.facts.samples:
        console.print(Text.assemble((lines_of(sample.prompt), "bold"), lines_of(sample.text)), soft_wrap=True)
        console.print()
    registration = finished.registration.facts
    console.print(
        f"registered: {registration.model_name} version {registration.version} "
        f"(models:/{registration.model_name}@{registration.alias})",
        f"report: {finished.report}",
        "",
        "next:",
        '  calm generate "The climate of" --temperature 0.5 --seed 1',
        "  calm run --set calm.learning_rate=5e-4   # reruns only what depends on it",
        "  calm ui                                  # curves, settings, lineage",
        sep="\n",
        soft_wrap=True,
    )
