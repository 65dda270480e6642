"""A sweep on this machine: what is made by which run, and its record in MLflow."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from calm_cli.sweep_folder import RECORD_NAME, SweepFolder
from calm_cli.sweep_runs import EVALUATION, LOG_NAME, MODEL, Task, Work, tasks_of
from calm_core.evaluation.documents import DocumentScores
from calm_core.store.artifact import Artifact
from calm_core.store.facts import CalmFacts, EvaluationFacts, ModelFacts, TransformerFacts
from calm_core.store.lock import FolderLock
from calm_core.telemetry.mlflow_run import (
    FLUSH_SECONDS,
    FLUSH_SECONDS_AFTER_FAILURE,
    PARENT_RUN_VARIABLE,
    start_run,
    status_of,
)
from calm_core.telemetry.mlflow_run import Run as MlflowRun
from pipelines.sweeps.plan import Run
from pipelines.sweeps.results import NUMBERS, Result

_FINISHED = "\nfinished\n"
"""Behind the id of a run in MLflow that knows all of it."""


class LocalSweep:
    """All that a sweep does here.

    Args:
        folder: Where all of it lies.
        parallel: Runs at a time.
    """

    def __init__(self, folder: SweepFolder, parallel: int) -> None:
        self._folder, self._parallel = folder, parallel
        self._runs = {run.name: run for run in folder.plan.runs}
        self._settings = {
            run.name: each.settings for each in folder.plan.candidates for rung in each.rungs for run in rung
        }
        self._records: dict[str, MlflowRun] = {}

    def carry_out(self, console: Console) -> None:
        """Do what is not done, show it, and write the results.

        Raises:
            CalmError: Another sweep is at work in the folder, or MLflow does not answer.
            Stopped: This process was asked to end.
        """
        folder = self._folder
        folder.path.mkdir(parents=True, exist_ok=True)
        with FolderLock(str(folder.path), "wait for it, or name another --output"), self._recorded() as parent:
            work = Work(folder.path, self._parallel, self._begin, self._end)
            while due := folder.plan.due(folder.scores):
                work.do(tasks_of(due, folder.labels, folder.path), console)
                folder.results |= {run.name: self._result(run, work.failed) for run in due}
                for name, text in folder.write().items():
                    parent.log_text(text, name)
            console.print()
            folder.show(console)
            for name, reason in work.failed.items():
                log = folder.path / name / LOG_NAME
                console.print(f"failed: {folder.labels.get(name, name)}: {reason} (log: {log})", soft_wrap=True)
            console.print()

    def _result(self, run: Run, failed: Mapping[str, str]) -> Result:
        """What a run has made, as its artifacts say it."""
        if run.name in failed:
            return Result(run)
        own = self._folder.path / run.name
        model = Artifact[ModelFacts](str(own / MODEL), CalmFacts, TransformerFacts)
        evaluation = Artifact(str(own / EVALUATION), EvaluationFacts)
        facts = evaluation.facts
        return Result(
            run,
            facts.brierlm,
            {n: term.value for n, term in facts.brier.items()},
            DocumentScores.read(evaluation),
            {name: value for name, value in facts.metrics().items() if name in NUMBERS}
            | {
                "parameters": model.facts.parameters,
                "trained_tokens": model.facts.trained_tokens or 0,
                "seconds": model.facts.seconds,
            },
            f"{run.name}/{EVALUATION}",
        )

    @contextmanager
    def _recorded(self) -> Iterator[MlflowRun]:
        """The sweep's run in MLflow, above those of its runs; one that goes on is the same."""
        parent = _record(self._folder.path, f"sweep {self._folder.path.name}")
        before = os.environ.get(PARENT_RUN_VARIABLE)
        os.environ[PARENT_RUN_VARIABLE] = parent.run_id
        try:
            yield parent
        except BaseException as error:
            parent.end(status_of(error), FLUSH_SECONDS_AFTER_FAILURE)
            raise
        finally:
            del os.environ[PARENT_RUN_VARIABLE]
            if before is not None:
                os.environ[PARENT_RUN_VARIABLE] = before
        parent.end("FINISHED", FLUSH_SECONDS)

    def _begin(self, task: Task) -> dict[str, str]:
        if task.name not in self._runs:
            return {}
        run = self._runs[task.name]
        record = self._records[task.name] = _record(self._folder.path / task.name, task.label)
        record.log_parameters({"model": run.model, "steps": run.steps, "seed": run.config.seed})
        record.log_parameters(self._settings[run.name])
        return {PARENT_RUN_VARIABLE: record.run_id}

    def _end(self, task: Task, reason: str) -> None:
        """Tell MLflow of a run that has ended, also of one that ended when nobody was there to see it."""
        folder = self._folder.path / task.name
        if task.name not in self._runs:
            return
        if not (record := self._records.pop(task.name, None)):
            file = folder / RECORD_NAME
            if reason or (file.exists() and file.read_text(encoding="utf-8").endswith(_FINISHED)):
                return
            record = _record(folder, task.label)
        if not reason:
            result = self._result(self._runs[task.name], {})
            assert result.brierlm and result.numbers
            record.log_metrics({"brierlm": result.brierlm.value, "training_flops": result.run.flops, **result.numbers})
        record.end("FAILED" if reason else "FINISHED", FLUSH_SECONDS_AFTER_FAILURE)
        if not reason:
            (folder / RECORD_NAME).write_text(record.run_id + _FINISHED, encoding="utf-8")


def _record(folder: Path, name: str) -> MlflowRun:
    """The run in MLflow of what a folder holds; it is begun if there is none, or no such run any more."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pipelines.local.tracking import end_open_stages

    file = folder / RECORD_NAME
    if file.exists():
        run_id = file.read_text(encoding="utf-8").removesuffix(_FINISHED)
        try:
            MlflowClient().get_run(run_id)
        except MlflowException:
            pass
        else:
            record = MlflowRun(run_id, name)
            end_open_stages(record, "KILLED")
            return record
    record = start_run(name, {})
    folder.mkdir(exist_ok=True)
    file.write_text(record.run_id, encoding="utf-8")
    return record
