"""One start of a command for `benchmarks.kills`: the processes below it, what it has told, and who is left after it."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import psutil

from calm_core.errors import EXIT_FAILED, EXIT_INTERRUPTED
from calm_core.telemetry.processes import SIGNALLED
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, ProgressEvent, parse
from calm_core.training.launcher import WORKER
from pipelines.local.home import HOME_VARIABLE

VICTIMS = ("parent SIGKILL", "torchrun SIGKILL", "rank SIGKILL", "all SIGKILL", "SIGTERM", "SIGTERM twice", "SIGINT")
HANGS_AFTER = 300.0
"""Seconds of a start that nothing disturbs any more."""
ORPHAN_AFTER = 20.0
"""Seconds between the end of a command and that of the last process below it."""
LOOK = 0.1  # seconds between two looks at processes
_AGENT = "calm_core.training.agent"
_MARK = "CALM_KILLS_MARK"
"""In the environment of all that a start starts: it says whose they are once their parents are gone."""
_STOPPED = (SIGINT, SIGTERM)
# A signal that comes before the command listens ends it as it would any other.
_EXIT_CODES = (0, EXIT_FAILED, EXIT_INTERRUPTED, -SIGKILL, *(SIGNALLED + n for n in _STOPPED), *(-n for n in _STOPPED))


class Start:
    """A command that has been started, with all processes below it.

    Args:
        command: It.
        mark: What its processes are known by; no other start's begins so.
        folder: Where it works: its home, its temporary files, and what it tells.
        environment: Of the command, to which its own folders are added.
    """

    def __init__(self, command: Sequence[str], mark: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.command = command
        self.orphans: list[str] = []
        self._mark = mark
        name = mark.replace("/", "-")
        self._said, self._progress = folder / f"{name}.log", folder / f"{name}.jsonl"
        own = {
            _MARK: mark,
            PROGRESS_FILE_VARIABLE: str(self._progress),
            HOME_VARIABLE: str(folder / "home"),
            "TMPDIR": str(folder / "temporary"),
        }
        self.began = time.monotonic()
        with open(self._said, "wb") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
                env=dict(environment) | own,
                start_new_session=True,
            )
        self._watcher = threading.Thread(target=self._watch_orphans)
        self._watcher.start()

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self.began

    def victims(self, victim: str) -> list[psutil.Process]:
        """The processes that one of VICTIMS may be, as they are now."""
        match victim.split()[0]:
            case "torchrun":
                return [process for process in marked(self._mark) if _runs(process, _AGENT)]
            case "rank":
                workers = [process for process in marked(self._mark) if _runs(process, WORKER)]
                return [process for process in workers if not _runs(process, _AGENT)]
            case "all":
                return marked(self._mark)
        return [psutil.Process(self.process.pid)] if self.process.poll() is None else []

    def ends(self) -> bool:
        """Wait for the command; False where it had to be killed, since it hung."""
        try:
            self.process.wait(HANGS_AFTER)
        except subprocess.TimeoutExpired:
            kill(marked(self._mark))
            self.process.wait()
            return False
        return True

    def _watch_orphans(self) -> None:
        self.process.wait()
        until = time.monotonic() + ORPHAN_AFTER
        while (left := marked(self._mark)) and time.monotonic() < until:
            time.sleep(LOOK)
        for process in left:
            with suppress(psutil.Error):
                self.orphans.append(" ".join(process.cmdline()[1:4]))
        kill(left)

    def close(self) -> None:
        """Wait until it is known whether a process is left; then none is."""
        self._watcher.join()

    @property
    def _events(self) -> list[ProgressEvent]:
        lines = self._progress.read_text(encoding="utf-8").splitlines() if self._progress.exists() else []
        return [parse(line) for line in lines]

    @property
    def first_step(self) -> int:
        """The first step that it has told of, 0 where none."""
        return next((event.done for event in self._events if event.done), 0)

    @property
    def can_pass(self) -> bool:
        """Whether it has failed, and said that the same command can succeed later."""
        events = self._events
        return bool(events and events[-1].state == "failed" and events[-1].can_pass)

    @property
    def last_words(self) -> str:
        """The last line that it has said."""
        lines = self._said.read_text(errors="replace").splitlines()
        return lines[-1] if lines else f"nothing was said, exit code {self.process.returncode}"

    @property
    def badly_told(self) -> str:
        """A traceback or an exit code that nobody should see; empty where all is well."""
        if "Traceback" in self._said.read_text(errors="replace"):
            return f"a traceback: {self.last_words}"
        return "" if self.process.returncode in _EXIT_CODES else f"exit code {self.process.returncode}"


def marked(mark: str) -> list[psutil.Process]:
    """The processes of all starts whose mark begins so."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK, "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _runs(process: psutil.Process, module: str) -> bool:
    with suppress(psutil.Error):
        return module in process.cmdline()
    return False


def kill(processes: Sequence[psutil.Process], number: int = SIGKILL) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def environment() -> dict[str, str]:
    """That of a start, before its own folders: one thread a rank, for there are more trainings than cores."""
    from benchmarks.measure import REPOSITORY

    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
