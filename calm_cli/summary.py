"""What a finished run has made, as one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calm_cli.board import Board
from calm_cli.display import clock
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Manifest

REPORT_NAME = "report.html"
_SHOWN_REJECTS = 5


@dataclass(frozen=True)
class Finished:
    """The artifacts of a run, by the names of the pipeline's outputs."""

    uris: Mapping[str, str]
    manifests: Mapping[str, Manifest]

    @classmethod
    def read(cls, uris: Mapping[str, str]) -> "Finished":
        """Read the manifests behind the URIs."""
        manifests = {
            name: Manifest.model_validate_json(storage.read(storage.join(uri, MANIFEST_NAME)))
            for name, uri in uris.items()
        }
        return cls(uris, manifests)

    def results(self, output: str) -> dict[str, Any]:
        return self.manifests[output].results

    def timing(self, output: str, name: str) -> float:
        return self.manifests[output].timings.get(name, 0.0)

    @property
    def report(self) -> str:
        """URI of the evaluation's report."""
        return storage.join(self.uris["evaluation_report"], REPORT_NAME)

    def scores(self) -> dict[str, float]:
        """The headline numbers, for the run in MLflow."""
        results = self.results("evaluation_report")
        brier = {f"brier_{n}": score["value"] for n, score in results["brier"].items()}
        return {
            "autoencoder_accuracy": results["autoencoder_accuracy"],
            **brier,
            "brierlm": results["brierlm"]["value"],
        }


def interval(score: Mapping[str, float], digits: int = 4) -> str:
    """A score with its confidence interval."""
    return f"{score['value']:.{digits}f}  [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def data_lines(results: Mapping[str, Any], reject_examples: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What became of the documents."""
    rejected = results["rejected"]
    splits = results["splits"]
    kept = ", ".join(f"{split['documents']:,} {name}" for name, split in splits.items())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items() if count)
    yield "documents", f"{results['documents_in']:,} read: {kept}"
    yield "rejected", f"{sum(rejected.values()):,}" + (f" ({reasons})" if reasons else "")
    for example in reject_examples[:_SHOWN_REJECTS]:
        yield "", str(example)
    near = f" and {results['near_duplicates']:,} near-duplicates" if results["near_duplicates"] else ""
    yield "duplicates dropped", f"{results['duplicates']:,}{near}"
    yield "tokens", ", ".join(f"{split['tokens']:,} {name}" for name, split in splits.items())


def score_lines(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How good the model is, and what it is compared with."""
    yield "autoencoder token accuracy", f"{results['autoencoder_accuracy']:.2%}"
    for n, score in results["brier"].items():
        yield f"Brier-{n}", interval(score)
    yield "BrierLM", interval(results["brierlm"])
    for name, reference in results["references"].items():
        yield f"BrierLM, {name} model", interval(reference["brierlm"])


def speed_lines(finished: Finished) -> Iterator[tuple[str, str]]:
    """Tokens per second."""
    yield "autoencoder training", f"{finished.timing('autoencoder_model', 'tokens_per_second'):,.0f} tokens/s"
    yield "CALM training", f"{finished.timing('calm_model', 'tokens_per_second'):,.0f} tokens/s"
    yield "generation", f"{finished.timing('evaluation_report', 'generation_tokens_per_second'):,.0f} tokens/s"


def show(finished: Finished, board: Board, console: Console) -> None:
    """Print the run's table, its texts, and where to go from here."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for lines in (
        data_lines(finished.results("dataset"), finished.manifests["dataset"].origins["reject_examples"]),
        score_lines(finished.results("evaluation_report")),
        speed_lines(finished),
        (
            (row.stage, "cached" if row.state == "cached" else f"{clock(row.seconds(row.ended or 0.0))} min")
            for row in board.rows
        ),
    ):
        for name, value in lines:
            table.add_row(name, Text(value))
        table.add_section()
        table.add_row("", "")
    console.print(table)

    for sample in finished.results("evaluation_report")["samples"]:
        console.print(Text.assemble((sample["prompt"], "bold"), sample["text"]), soft_wrap=True)
        console.print()
    registration = finished.results("registration")
    console.print(
        f"registered: {registration['model_name']} version {registration['version']} "
        f"(models:/{registration['model_name']}@{registration['alias']})",
        f"report: {finished.report}",
        "",
        "next:",
        '  calm generate "The climate of" --temperature 0.5 --seed 1',
        "  calm run --set calm.learning_rate=5e-4   # reruns only what depends on it",
        "  calm ui                                  # curves, settings, lineage",
        sep="\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
