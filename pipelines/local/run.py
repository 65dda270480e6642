"""The pipeline on one machine, run by Kubeflow's own local runner in a child process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from calm_core.telemetry.processes import PARENT_VARIABLE, killed_by
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, ProgressEvent, ProgressFile
from pipelines.local.home import Home

STOP_SECONDS = 30.0
"""How long stopped tasks may take to save what they are at."""
BASELINE_MODEL, BASELINE_REPORT = "baseline_model", "baseline_report"
"""Names of two more outputs of a run that trains the baseline."""
RUN_REPORT = "run_report"
"""Name of the output of a run with the page about it."""
LOG_NAME, PROGRESS_NAME, OUTPUTS_NAME = "pipeline.log", "progress.jsonl", "outputs.json"
REQUEST_NAME, ENDED_NAME, _FAILURE_NAME = "request.json", "ended.json", "failure.json"
_LAST_BYTES = 256 << 10  # of a log, in which the reason of a failure is looked for
_TRACEBACK, _OF_A_STAGE = "Traceback (most recent call last):", "error: "
_OF_KUBEFLOW = "RuntimeError: Pipeline "  # says which task has failed, which is known


@dataclass(frozen=True)
class Ending:
    """How a failed run ended, where no stage could say so.

    Attributes:
        stage: What has failed: the task's name, or Kubeflow's runner.
        reason: Why, on one line.
        can_pass: Whether running it again can help.
    """

    stage: str
    reason: str
    can_pass: bool


class LocalRun:
    """A run of `calm-train` in a child process, which `start` starts.

    Attributes:
        log: The file with Kubeflow's chatter and the output of every task.
    """

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", temporary: str) -> None:
        self.log = folder / LOG_NAME
        self._progress = ProgressFile(folder / PROGRESS_NAME)
        self._outputs = folder / OUTPUTS_NAME
        self._failure = folder / _FAILURE_NAME
        self._ended = folder / ENDED_NAME
        self._process = process
        self._temporary = temporary

    @classmethod
    def start(
        cls,
        arguments: Mapping[str, Any],
        home: Home,
        lock: int,
        environment: Mapping[str, str],
        asked: Mapping[str, Any],
    ) -> Self:
        """Start a run.

        Args:
            arguments: Of the pipeline, as `arguments_of` makes them.
            home: Where it works.
            lock: The home's lock, which the child inherits: it is free when the last of both has ended.
            environment: Variables for the tasks; they take no part in the cache keys, as parameters would.
            asked: What the run is remembered by: the `command`, its `profile`, what it `changed` there.
        """
        home.logs.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("run-%Y%m%d-%H%M%S-"), dir=home.logs))
        request = folder / REQUEST_NAME
        request.write_text(
            json.dumps(
                {
                    "arguments": dict(arguments),
                    "pipeline_root": str(home.pipeline_root),
                    "cache_root": str(home.cache),
                    "outputs": str(folder / OUTPUTS_NAME),
                    "failure": str(folder / _FAILURE_NAME),
                    "asked": dict(asked),
                    "started": time.time(),
                    "process": os.getpid(),
                    "process_started": psutil.Process().create_time(),
                }
            ),
            encoding="utf-8",
        )
        temporary = tempfile.mkdtemp(prefix="calm-run-")  # not in the home, whose path may be too long for sockets
        told = {
            PROGRESS_FILE_VARIABLE: str(folder / PROGRESS_NAME),
            "PYTHONUNBUFFERED": "1",
            PARENT_VARIABLE: str(os.getpid()),
            "TMPDIR": temporary,
        }
        with open(folder / LOG_NAME, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.local.worker", str(request)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, **told},
                start_new_session=True,
                pass_fds=(lock,),
            )
        return cls(folder, process, temporary)

    def poll(self) -> int | None:
        """Exit status of the run, or None while it is at work."""
        return self._process.poll()

    def events(self) -> Iterator[ProgressEvent]:
        """What the stages have said since the last call."""
        yield from self._progress.events()

    def outputs(self) -> dict[str, str]:
        """URIs of the artifacts of a run that has succeeded, by the names of the pipeline's outputs."""
        outputs: dict[str, str] = json.loads(self._outputs.read_text(encoding="utf-8"))
        return outputs

    def ending(self) -> Ending:
        """How a failed run ended, as far as that shows from outside."""
        stage, exit_code = "the pipeline", self._process.wait()
        if self._failure.exists():
            failure = json.loads(self._failure.read_text(encoding="utf-8"))
            stage, exit_code = failure["task"], failure["exit_code"]
        if how := killed_by(exit_code):
            return Ending(stage, f"its process {how}", can_pass=True)
        said = last_words(_end_of(self.log)) or "without a word"
        return Ending(stage, f"it broke before it could say why ({said})", can_pass=False)

    def stop(self) -> None:
        """Stop all processes of the run: they are asked, and after STOP_SECONDS killed. Its temporary files go.

        How it had ended before stays in its folder.
        """
        code = self.poll()
        state = "stopped" if code is None else "failed" if code else "done"
        processes = self._processes()
        try:
            if processes:
                with suppress(ProcessLookupError):  # what is left, torchrun, has seen the others go
                    os.killpg(self._process.pid, signal.SIGTERM)
                psutil.wait_procs(processes, timeout=STOP_SECONDS)
        finally:  # also when an impatient user interrupts the waiting
            for process in processes:
                if process.is_running():
                    process.kill()
            self._process.wait()
            shutil.rmtree(self._temporary, ignore_errors=True)
            with suppress(OSError):  # the disk may be full
                self._ended.write_text(json.dumps({"state": state, "time": time.time()}), encoding="utf-8")

    def _processes(self) -> set[psutil.Process]:
        """The living processes of the child's session, and all below them: torchrun gives each rank its own session."""
        members = {process for process in psutil.process_iter() if _session_of(process) == self._process.pid}
        below = {descendant for member in members for descendant in member.children(recursive=True)}
        return members | below


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        return file.read().decode(errors="replace")


def last_words(log: str) -> str:
    """The line in a log that says why a task, Kubeflow's runner or MLflow has failed; empty where there is none."""
    said, in_traceback = "", False
    for line in log.splitlines():
        if line.startswith(_OF_A_STAGE):
            said = line.removeprefix(_OF_A_STAGE)
        elif line.startswith(_TRACEBACK):
            in_traceback = True
        elif in_traceback and line and not line.startswith(" "):
            in_traceback = False
            said = said if line.startswith(_OF_KUBEFLOW) else line
    return said


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:  # it has just ended, or belongs to somebody else
        return None
