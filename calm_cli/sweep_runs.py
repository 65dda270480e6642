"""The runs of a sweep on this machine: each is some commands of `calm`, in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from calm_cli.board import Board, Row
from calm_cli.display import display_for
from calm_cli.settings import settings_lines
from calm_core.config import Config
from calm_core.errors import ArtifactError, Stopped
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, DatasetFacts, EvaluationFacts, Facts
from calm_core.telemetry.processes import PARENT_VARIABLE, PROCESSES_VARIABLE, killed_by, machine_cores
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, ProgressEvent, ProgressFile
from pipelines.local.run import STOP_SECONDS
from pipelines.sweeps.plan import Run

DATASET, AUTOENCODER, MODEL, EVALUATION = "dataset", "autoencoder", "model", "evaluation"
"""Folders of the artifacts in that of a task."""
SETTINGS_NAME, LOG_NAME = "settings.yaml", "log"
CHECKPOINTS = "checkpoints"
_PROGRESS_NAME = "progress.jsonl"
_THREADS = "OMP_NUM_THREADS"
_POLL_SECONDS = 0.25
_ERROR = "error "


@dataclass(frozen=True)
class Step:
    """A command, without `--output` and `--profile`, and the artifact that it makes."""

    kind: type[Facts]
    uri: str
    arguments: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether the artifact is there, and whole."""
        try:
            Artifact(self.uri, self.kind).check_files()
        except ArtifactError:
            return False
        return True


@dataclass(frozen=True)
class Task:
    """A part of a sweep, which is done once: a run, or what several runs share.

    Attributes:
        name: By content, and of its folder.
        label: For people.
        config: Every setting.
        steps: In their order.
        needs: Names of the tasks that come before.
    """

    name: str
    label: str
    config: Config
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()


def tasks_of(runs: Iterable[Run], labels: Mapping[str, str], folder: Path) -> list[Task]:
    """What has to be done for some runs, what they share first.

    Args:
        runs: Of the sweep.
        labels: Of the runs, by name.
        folder: Of the sweep.
    """
    shared: dict[str, Task] = {}
    own = []
    for run in runs:
        dataset, autoencoder = str(folder / run.dataset / DATASET), str(folder / run.autoencoder / AUTOENCODER)
        model, evaluation = str(folder / run.name / MODEL), str(folder / run.name / EVALUATION)
        read: tuple[str, ...] = ("--dataset", dataset, "--checkpoints", str(folder / CHECKPOINTS))
        if run.dataset not in shared:
            step = Step(DatasetFacts, dataset, ("prepare",))
            shared[run.dataset] = Task(run.dataset, "data set", run.config, (step,))
        if run.autoencoder and run.autoencoder not in shared:
            step = Step(AutoencoderFacts, autoencoder, ("train", "autoencoder", *read))
            label = f"autoencoder, seed={run.config.seed} ({run.autoencoder[-4:]})"
            shared[run.autoencoder] = Task(run.autoencoder, label, run.config, (step,), (run.dataset,))
        if run.autoencoder:
            read += ("--autoencoder", autoencoder)
        steps = (
            Step(Facts.of_kind[run.model], model, ("train", run.model, *read)),
            Step(EvaluationFacts, evaluation, ("evaluate", model, *read)),
        )
        needs = (run.dataset, *([run.autoencoder] if run.autoencoder else []))
        own.append(Task(run.name, labels[run.name], run.config, steps, needs))
    return [*shared.values(), *own]


class Work:
    """Carries out tasks, some at a time, and shows how far they are.

    Args:
        folder: Of the sweep.
        parallel: How many are at work at a time.
        begin: Called with a task that begins; returns variables of its processes.
        end: Called with one that has ended, now or earlier, and why it failed, which is empty where it did not.

    Attributes:
        failed: Why tasks have failed, by name.
    """

    def __init__(
        self,
        folder: Path,
        parallel: int,
        begin: Callable[[Task], Mapping[str, str]],
        end: Callable[[Task, str], object],
    ) -> None:
        self.failed: dict[str, str] = {}
        self._folder, self._parallel, self._begin, self._end = folder, parallel, begin, end
        self._done: set[str] = set()
        self._at_work: list[_AtWork] = []

    def do(self, tasks: Sequence[Task], console: Console) -> None:
        """Carry out tasks; one that fails costs those alone that need it.

        Raises:
            Stopped: This process was asked to end; what is at work has saved what it could.
        """
        waiting = [task for task in tasks if task.name not in self._done]
        board = Board([task.label for task in waiting], time.time())
        try:
            with display_for(board, console) as display:
                while waiting or self._at_work:
                    waiting = self._advance(waiting, board)
                    display.refresh(time.time())
                    if self._at_work:
                        time.sleep(_POLL_SECONDS)
        except Stopped as stopped:
            stopped.again = "to go on, run the same command again: what is done is kept"
            with suppress(OSError):  # the terminal is gone
                console.print(f"stopping; what is at work has {STOP_SECONDS:.0f} s to save it")
            raise
        finally:
            self._stop()

    def _advance(self, waiting: Sequence[Task], board: Board) -> list[Task]:
        """See what has ended, and begin what can; returns what waits still."""
        for each in [*self._at_work]:
            if (reason := each.look()) is None:
                continue
            self._at_work.remove(each)
            self._finish(each.task, each.row, reason)
        left = []
        for task in waiting:
            row = board.row(task.label)
            if broken := next((name for name in task.needs if name in self.failed), ""):
                self._finish(task, row, f"what it needs has failed ({broken})")
            elif not self._done.issuperset(task.needs) or len(self._at_work) >= self._parallel:
                left.append(task)
            elif not (steps := [step for step in task.steps if not step.is_done]):
                row.state = "cached"
                self._done.add(task.name)
                self._end(task, "")
            else:
                self._at_work.append(_AtWork(task, steps, row, self._folder / task.name, self._variables(task)))
        return left

    def _finish(self, task: Task, row: Row, reason: str) -> None:
        row.state, row.ended = ("failed" if reason else "done"), time.time()
        if reason:
            self.failed[task.name] = reason
        else:
            self._done.add(task.name)
        self._end(task, reason)

    def _variables(self, task: Task) -> dict[str, str]:
        cores = str(max(1, machine_cores() // self._parallel))
        shared = {_THREADS: os.environ.get(_THREADS, cores), PROCESSES_VARIABLE: cores} if self._parallel > 1 else {}
        return {**os.environ, **shared, **self._begin(task), PARENT_VARIABLE: str(os.getpid())}

    def _stop(self) -> None:
        """Ask all that is at work to end, and kill what has not after a while."""
        processes = [each.process for each in self._at_work]
        for process in processes:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        try:
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        finally:  # also when an impatient user interrupts the waiting
            for process in processes:
                _kill(process)
            for each in self._at_work:
                self._end(each.task, "stopped")
            self._at_work.clear()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.wait()


class _AtWork:
    """A task whose steps are carried out, one after the other, in a process of its own."""

    def __init__(self, task: Task, steps: Sequence[Step], row: Row, folder: Path, variables: Mapping[str, str]) -> None:
        self.task, self.row = task, row
        self._folder = folder
        self._progress = ProgressFile(folder / _PROGRESS_NAME)
        self._failure: ProgressEvent | None = None
        folder.mkdir(exist_ok=True)
        settings = "".join(f"{line}\n" for line in settings_lines(task.config))
        (folder / SETTINGS_NAME).write_text(settings, encoding="utf-8")
        self._progress.path.unlink(missing_ok=True)
        row.state, row.started = "running", time.time()
        own = ("--profile", str(folder / SETTINGS_NAME))
        commands = [[*step.arguments, "--output", step.uri, *own] for step in steps]
        with open(folder / LOG_NAME, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "calm_cli.sweep_task", json.dumps(commands)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**variables, PROGRESS_FILE_VARIABLE: str(self._progress.path)},
                start_new_session=True,  # Ctrl-C is ours to hand on
            )

    def look(self) -> str | None:
        """None while it is at work, else why it has failed; empty where it is done."""
        code = self.process.poll()  # before the events, so that none of the last ones is missed
        self._read_events()
        if code is None:
            return None
        return self._reason(code) if code else ""

    def _read_events(self) -> None:
        for event in self._progress.events():
            if event.state == "failed":
                self._failure = self._failure or event
            else:
                self.row.event = event

    def _reason(self, code: int) -> str:
        if self._failure:
            return self._failure.note
        lines = (self._folder / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
        said = next((line.removeprefix(_ERROR) for line in reversed(lines) if line.startswith(_ERROR)), "")
        killed = killed_by(code)
        return said or (f"its process {killed}" if killed else (lines or [f"exit code {code}"])[-1])
