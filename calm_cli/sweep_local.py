"""A sweep on this machine: its folder, its runs in MLflow, its results."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from calm_cli.sweep_runs import EVALUATION, MODEL, Task, Work, tasks_of
from calm_cli.tables import show_table
from calm_core.errors import ConfigError
from calm_core.evaluation.documents import DocumentScores
from calm_core.shown import listed
from calm_core.store.artifact import Artifact
from calm_core.store.facts import CalmFacts, EvaluationFacts, ModelFacts, TransformerFacts
from calm_core.store.lock import FolderLock, is_lock
from calm_core.telemetry.mlflow_run import (
    FLUSH_SECONDS,
    FLUSH_SECONDS_AFTER_FAILURE,
    PARENT_RUN_VARIABLE,
    start_run,
    status_of,
)
from calm_core.telemetry.mlflow_run import Run as MlflowRun
from pipelines.local.home import Home
from pipelines.sweeps.page import page, table
from pipelines.sweeps.plan import Plan, Run
from pipelines.sweeps.results import Result, as_csv, as_json, pooled, run_rows

CSV_NAME, JSON_NAME, PAGE_NAME = "results.csv", "results.json", "results.html"
_RECORD_NAME = "mlflow-run"
"""Of the file with the id of an MLflow run, in the folder of what it is about."""


class LocalSweep:
    """All that a sweep does here.

    Args:
        plan: What is run.
        folder: Where all of it lies.
        parallel: Runs at a time.

    Raises:
        ConfigError: The folder is a file, or holds what is no sweep's.
    """

    def __init__(self, plan: Plan, folder: Path, parallel: int) -> None:
        self.plan, self.folder = plan, folder
        self._parallel = parallel
        self._results: dict[str, Result] = {}
        self._runs = {run.name: run for run in plan.runs}
        of_run = {run.name: each for each in plan.candidates for rung in each.rungs for run in rung}
        self._settings = {name: each.settings for name, each in of_run.items()}
        self._labels = {run.name: f"{number} {of_run[run.name].label(run)}" for number, run in enumerate(plan.runs, 1)}
        self._records: dict[str, MlflowRun] = {}
        self._require_own_folder()

    def _require_own_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--output: {self.folder} is a file; name a folder")
        others = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        others = [name for name in others if not is_lock(name)]
        if others and _RECORD_NAME not in others:
            raise ConfigError(
                f"--output: {self.folder} holds other files ({listed(others, 3)}); name a new or an empty folder"
            )

    def carry_out(self, home: Home, console: Console) -> int:
        """Do what is not done, show it, and write the results; returns how many runs have failed.

        Raises:
            CalmError: Another sweep is at work in the folder, or MLflow does not answer.
            Stopped: This process was asked to end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(str(self.folder), "wait for it, or name another --output"), self._recorded():
            work = Work(self.folder, self._parallel, self._begin, self._end)
            while due := self.plan.due(self._scores()):
                work.do(tasks_of(due, self._labels, self.folder), console)
                self._results |= {run.name: self._result(run, work.failed) for run in due}
                self._write()
            rows = pooled(self.plan, self._results)
            console.print()
            heading, lines = table(self.plan, rows)
            show_table(heading, lines, console, right=range(1, len(heading)))
            for name, reason in work.failed.items():
                told = self._labels.get(name, name)
                console.print(f"failed: {told}: {reason} (log: {self.folder / name / 'log'})", soft_wrap=True)
            console.print()
        return sum(result.brierlm is None for result in self._results.values())

    def _scores(self) -> dict[str, float | None]:
        return {name: each.brierlm.value if each.brierlm else None for name, each in self._results.items()}

    def _result(self, run: Run, failed: Mapping[str, str]) -> Result:
        """What a run has made, as its artifacts say it."""
        if run.name in failed:
            return Result(run)
        model = Artifact[ModelFacts](str(self.folder / run.name / MODEL), CalmFacts, TransformerFacts)
        evaluation = Artifact(str(self.folder / run.name / EVALUATION), EvaluationFacts)
        facts = evaluation.facts
        numbers = {
            "parameters": model.facts.parameters,
            "trained_tokens": model.facts.trained_tokens or 0,
            "seconds": model.facts.seconds,
        }
        return Result(
            run,
            facts.brierlm,
            {n: term.value for n, term in facts.brier.items()},
            DocumentScores.read(evaluation),
            numbers,
            f"{run.name}/{EVALUATION}",
        )

    def _write(self) -> None:
        """Write the results; equal ones give equal bytes."""
        rows = pooled(self.plan, self._results)
        files = {
            CSV_NAME: as_csv(list(run_rows(self.plan, self._results))),
            JSON_NAME: as_json(self.plan, self._results),
            PAGE_NAME: page(f"Sweep {self.folder.name}", self.plan, rows).encode(),
        }
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
            self._records[""].log_text(data.decode(), name)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """The sweep's run in MLflow, above those of its runs; one that goes on is the same."""
        parent = self._records[""] = _record(self.folder / _RECORD_NAME, f"sweep {self.folder.name}")
        before = os.environ.get(PARENT_RUN_VARIABLE)
        os.environ[PARENT_RUN_VARIABLE] = parent.run_id
        try:
            yield
        except BaseException as error:
            parent.end(status_of(error), FLUSH_SECONDS_AFTER_FAILURE)
            raise
        finally:
            os.environ.pop(PARENT_RUN_VARIABLE)
            if before is not None:
                os.environ[PARENT_RUN_VARIABLE] = before
        parent.end("FINISHED", FLUSH_SECONDS)

    def _begin(self, task: Task) -> dict[str, str]:
        if task.name not in self._runs:
            return {}
        folder, run = self.folder / task.name, self._runs[task.name]
        folder.mkdir(exist_ok=True)
        record = self._records[task.name] = _record(folder / _RECORD_NAME, task.label)
        record.log_parameters({"model": run.model, "steps": run.steps, "seed": run.config.seed})
        record.log_parameters(self._settings[run.name])
        return {PARENT_RUN_VARIABLE: record.run_id}

    def _end(self, task: Task, reason: str) -> None:
        if not (record := self._records.pop(task.name, None)):
            return
        if not reason:
            result = self._result(self._runs[task.name], {})
            assert result.brierlm and result.numbers
            record.log_metrics({"brierlm": result.brierlm.value, "training_flops": result.run.flops, **result.numbers})
        record.end("FAILED" if reason else "FINISHED", FLUSH_SECONDS_AFTER_FAILURE)


def _record(file: Path, name: str) -> MlflowRun:
    """The run in MLflow that a file names, begun if there is none, or no such run any more."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pipelines.local.tracking import end_open_stages

    if file.exists():
        run_id = file.read_text(encoding="utf-8")
        try:
            MlflowClient().get_run(run_id)
        except MlflowException:
            pass
        else:
            record = MlflowRun(run_id, name)
            end_open_stages(record, "KILLED")
            return record
    record = start_run(name, {})
    file.write_text(record.run_id, encoding="utf-8")
    return record
