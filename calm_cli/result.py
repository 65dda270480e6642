"""What a command has made: a small table for people, or one JSON document for machines."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from calm_cli.display import clock
from calm_cli.screen import Screen
from calm_cli.summary import REPORT_NAME, data_lines, score_lines
from calm_cli.tables import show_pairs
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import (
    DatasetFacts,
    EvaluationFacts,
    Facts,
    MixtureFacts,
    ModelFacts,
    RegistrationFacts,
    ReportFacts,
)


def document(artifact: Artifact[Facts]) -> dict[str, Any]:
    """An artifact as JSON: where it is, and what its manifest says of it."""
    manifest = artifact.manifest
    return {
        "kind": manifest.kind,
        "uri": artifact.uri,
        "digest": artifact.digest,
        "results": manifest.results,
        "timings": manifest.timings,
    }


def print_json(value: Any) -> None:
    """Print one JSON document in ASCII; a number that JSON does not have, as a manifest from elsewhere may, is null."""
    strict = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    typer.echo(json.dumps(strict, indent=1, allow_nan=False))


def show_result(artifact: Artifact[Facts], started: float, as_json: bool, next_: Sequence[str] = ()) -> None:
    """Print what a stage has made.

    Args:
        artifact: It.
        started: When the command began, as `time.monotonic` says.
        as_json: For machines.
        next_: Commands that go on with it, or look at it.
    """
    if as_json:
        print_json(document(artifact))
        return
    console = Screen(soft_wrap=True)
    taken = clock(time.monotonic() - started)
    show_pairs([*artifact_lines(artifact), ("time", taken)], console)
    for number, command in enumerate(next_):
        console.print(f"next: {command}" if number else f"\nnext: {command}")


def artifact_lines(artifact: Artifact[Facts]) -> Iterator[tuple[str, str]]:
    """What an artifact is, where it is, and its numbers that matter."""
    yield artifact.manifest.kind, artifact.uri
    yield "digest", artifact.digest
    facts = artifact.facts
    match facts:
        case DatasetFacts():
            if facts.sources:
                more = f" and {len(facts.sources) - 1:,} more" if len(facts.sources) > 1 else ""
                yield "source", facts.sources[0].uri + more
            yield from data_lines(facts)
            yield "vocabulary", f"{facts.vocab_size:,} tokens"
        case MixtureFacts():
            for share, uri in zip(facts.weights, facts.datasets, strict=True):
                yield f"{share:.1%}", uri
        case ModelFacts():
            yield from model_lines(facts)
        case EvaluationFacts():
            yield "model", facts.model
            yield from score_lines(facts).items()
            if facts.autoencoder_accuracy is not None:
                yield "token accuracy", f"{facts.autoencoder_accuracy:.2%}"
            if facts.evaluated:
                yield "evaluated", facts.evaluated
            yield "report", storage.join(artifact.uri, REPORT_NAME)
        case RegistrationFacts():
            yield "version", facts.model_uri
            if facts.promoted:
                yield "alias", f"models:/{facts.model_name}@{facts.alias}"
            if facts.reason:
                yield "reason", facts.reason
        case ReportFacts():
            yield "verdict", facts.headline
            yield "reason", facts.reason
            yield "page", storage.join(artifact.uri, facts.page.path)
        case _:
            yield from plain_lines(artifact.manifest.results)


def model_lines(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    """How large a model is, how good on held-out text, what went wrong in training, and what training took."""
    yield "parameters", f"{facts.parameters:,}"
    if facts.trained_tokens is not None:
        yield "trained tokens", f"{facts.trained_tokens:,}"
    if facts.precision:
        yield "trained in", facts.precision
    for name, number in facts.validation.items():
        yield f"validation {name.replace('_', ' ')}", f"{number:.4f}"
    yield from plain_lines(facts.went_wrong)
    if facts.tokens_per_second:
        yield "training time", clock(facts.seconds)
        yield "training tokens/s", f"{facts.tokens_per_second:,.0f}"
    if facts.accelerator_seconds is not None:
        yield "accelerator-hours", f"{facts.accelerator_seconds / 3600:,.4g}"
    if facts.energy_joules is not None:
        yield "energy", f"{facts.energy_joules / 3.6e6:,.4g} kWh"
    if facts.model_flops_utilisation is not None:
        yield "FLOPs utilisation", f"{facts.model_flops_utilisation:.1%} of {facts.peak_tflops:,.6g} TFLOP/s a rank"
    if facts.trace_uri:
        yield "trace", facts.trace_uri


def plain_lines(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The results of any kind: its numbers and texts, and how much there is of what is longer."""
    for name, value in results.items():
        match value:
            case int() | float():
                shown = f"{value:,}"
            case str():
                shown = value
            case list() | dict():
                shown = f"{len(value):,} entries"
            case _:
                shown = json.dumps(value)
        yield name.replace("_", " "), shown
