"""The skeleton of a stage: reported while it works, recorded in MLflow, and ended by the artifact that it has made."""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from calm_core.store.artifact import Artifact
from calm_core.store.facts import Facts
from calm_core.telemetry.mlflow_run import DIGEST_TAG, Run, stage_run
from calm_core.telemetry.progress import failure_reported, report


class Stage:
    """One run of a stage, while the block lasts.

    What is checked before it begins costs nothing where it is refused: neither progress nor a run in MLflow tells of
    it, but the failure.

    Args:
        name: Name of the stage, e.g. "train-autoencoder".
        settings: What it is run with, logged as MLflow parameters.

    Attributes:
        run: Its MLflow run, the null run before it begins and without a tracking server.

    Example:
        >>> with Stage("evaluate", settings) as stage:
        ...     writer.check()
        ...     stage.begin()
        ...     stage.report(note="BrierLM")
        ...     stage.finish(artifact, "BrierLM 5.7")
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.run = Run()
        self._settings = settings
        self._note: str | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(failure_reported(self.name))
        return self

    def begin(self) -> None:
        """Say so, and open the run in MLflow.

        Raises:
            CalmError: MLflow does not answer.
        """
        report(self.name, note="starting")
        self.run = self._open.enter_context(stage_run(self.name, self._settings))

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(error_type, error, trace)
        if error_type is None and self._note is not None:  # said last: who watches may end when the last stage has
            report(self.name, "finished", note=self._note)

    def report(self, done: int = 0, total: int = 0, rate: float = 0.0, eta: float = 0.0, note: str = "") -> None:
        """Tell whoever watches how far the stage is; arguments as of `ProgressEvent`."""
        report(self.name, done=done, total=total, rate=rate, eta=eta, note=note)

    def finish(self, artifact: Artifact[Facts], note: str) -> None:
        """Tag the run with what has been made and of what; once the run has ended, the note is shown."""
        self.run.set_tags({DIGEST_TAG: artifact.digest, **artifact.manifest.parents})
        self._note = note
