"""Where the points of training curves go: whoever watches, a file of curves, MLflow."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from calm_core.telemetry.mlflow_run import Run
from calm_core.telemetry.progress import report

_TOLD_SECONDS = 0.1  # of waiting in all


@dataclass(frozen=True)
class Point:
    """What is known at a step.

    Attributes:
        step, steps: Optimiser steps done, and in all.
        metrics: Losses and the like, by name; they repeat exactly.
        speed: Rates and waits of this run, by name; "tokens_per_second" is one.
        eta: Seconds left, estimated.
        headline: The number that matters, for people.
    """

    step: int
    steps: int
    metrics: Mapping[str, float]
    speed: Mapping[str, float]
    eta: float
    headline: str


class MetricSink(Protocol):
    """Takes the points of one training run."""

    def log(self, point: Point) -> None: ...

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take over, before the first point, what a training that goes on has logged: the records of its `Curves`."""


class ProgressSink:
    """Tells whoever watches the stage.

    Args:
        stage: Its name.
        loss: Name of what training makes smaller.
    """

    def __init__(self, stage: str, loss: str) -> None:
        self._stage, self._loss = stage, loss

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: what is past was told."""

    def log(self, point: Point) -> None:
        report(
            self._stage,
            done=point.step,
            total=point.steps,
            rate=point.speed["tokens_per_second"],
            eta=point.eta,
            note=point.headline,
            detail=", ".join(self._detail(point)),
        )

    def _detail(self, point: Point) -> Iterator[str]:
        """What a line has room for, and a board has not."""
        for name in (self._loss, "gradient_norm", "learning_rate"):
            if name in point.metrics:
                yield f"{name.replace('_', ' ')} {point.metrics[name]:.4g}"
        if rate := point.speed.get("recent_tokens_per_second"):
            yield f"{rate:,.0f} tokens/s lately"
        if share := point.speed.get("model_flops_utilisation"):
            yield f"{share:.1%} of peak FLOP/s"
        if size := point.speed.get("memory_bytes"):
            yield f"{size / 2**30:,.2f} GiB"
        for name, seconds in point.speed.items():
            if name.endswith("_wait_seconds") and seconds >= _TOLD_SECONDS:
                yield f"waited {seconds:,.1f} s for {name.removesuffix('_wait_seconds')}"


class MlflowSink:
    """Logs to an MLflow run, which no step waits for."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Log all of it: the run is a new one."""
        self._run.log_points((record["step"], {k: v for k, v in record.items() if k != "step"}) for record in records)

    def log(self, point: Point) -> None:
        self._run.log_metrics({**point.metrics, **point.speed}, step=point.step)


class JsonlSink:
    """Appends every point to a local file of JSON lines, which all starts of a training share.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: an earlier start has appended it."""

    def log(self, point: Point) -> None:
        line = json.dumps({"time": time.time(), "step": point.step, **point.metrics, **point.speed})
        with suppress(OSError), open(self._path, "a", encoding="utf-8") as file:  # a full disk ends no training
            file.write(line + "\n")


class Curves:
    """Keeps the metrics of every point; part of a checkpoint, and in the end a file of JSON lines."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: they are its own."""

    def log(self, point: Point) -> None:
        self.records.append({"step": point.step, **point.metrics})

    def latest(self, name: str) -> float | None:
        """The last value of a metric, None before there is one."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    def to_bytes(self) -> bytes:
        """The records as JSON lines."""
        return "".join(json.dumps(record) + "\n" for record in self.records).encode()

    def load(self, data: bytes) -> None:
        """Take over the records of a checkpoint."""
        self.records = [json.loads(line) for line in data.splitlines()]


class Sinks:
    """Several sinks as one; none at all is the null object of the ranks that report nothing."""

    def __init__(self, sinks: Sequence[MetricSink] = ()) -> None:
        self._sinks = sinks

    def log(self, point: Point) -> None:
        for sink in self._sinks:
            sink.log(point)

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        for sink in self._sinks:
            sink.begin_with(records)
