"""Ctrl-C, SIGTERM and a closed terminal, in real processes: one line, an exit code, and nothing that is left behind."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, ProgressEvent, parse
from tests.conftest import sentences

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
MINI = Path(__file__).parents[1] / "pipelines" / "mini.yaml"
_SECONDS = 120  # after which it counts as a hang


def _unignore() -> None:
    """Let a process be ended by signals that these tests themselves may have been told to ignore, as by nohup."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


class Program:
    """`calm` in a process and a folder of its own, which can be asked how far it is."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.progress = folder / "progress.jsonl"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CALM_", "MLFLOW_"))}
        environment |= {
            "CALM_HOME": str(folder / "home"),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            PROGRESS_FILE_VARIABLE: str(self.progress),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from calm_cli.start import main; main()", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=_unignore,
        )

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait for what the program says or makes."""
        while not is_so():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def said(self, is_so: Callable[[ProgressEvent], bool]) -> None:
        """Wait for an event."""
        self.wait_until(lambda: any(map(is_so, self.events())))

    def events(self) -> list[ProgressEvent]:
        lines = self.progress.read_bytes().splitlines(keepends=True) if self.progress.exists() else []
        return [parse(line.decode()) for line in lines if line.endswith(b"\n")]

    def below(self) -> list[psutil.Process]:
        self._below = psutil.Process(self.process.pid).children(recursive=True)
        return self._below

    def ended(self) -> tuple[int, str]:
        """The exit code, and standard error; it has left no process and no temporary file."""
        with suppress(psutil.NoSuchProcess):  # it has ended already
            self._below = self.below()
        _, error = self.process.communicate(timeout=_SECONDS)
        _, alive = psutil.wait_procs(self._below, timeout=_SECONDS)
        assert alive == []
        # torch keeps a cache there, one for each user.
        assert [path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")] == []
        assert "Traceback" not in error, error
        return self.process.returncode, error


@contextmanager
def at_work(folder: Path, *arguments: str) -> Iterator[Program]:
    program = Program(folder, *arguments)
    try:
        yield program
    finally:
        for process in (*program.below(), program.process) if program.process.poll() is None else ():
            process.kill()
        program.process.communicate()


def statuses(folder: Path) -> set[str]:
    """How the runs have ended that MLflow has of a program."""
    with closing(sqlite3.connect(folder / "home" / "mlflow.db")) as database:
        return {status for (status,) in database.execute("SELECT status FROM runs")}


def texts(folder: Path) -> str:
    """More text than is prepared before a signal comes."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": sentences(i, 40)}) + "\n" for i in range(20_000)))
    return str(file)


def has_signal(process: int, number: signal.Signals, mask: str) -> bool:
    """Whether a signal is in one of a process's masks: SigCgt, those it handles; ShdPnd, those that wait for it."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{mask}:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


NEEDS_MASKS = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only there its signals can be seen")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_preparing_stops(workers: str, number: signal.Signals, tmp_path: Path) -> None:
    arguments = ["--profile", str(MINI), "--source", texts(tmp_path), "--output", "dataset", "--workers", workers]
    with at_work(tmp_path, "prepare", *arguments) as program:
        program.said(lambda event: "scanning" in event.note)
        os.killpg(program.process.pid, number)  # as a terminal does: all of its processes get it
        exit_code, error = program.ended()
    assert exit_code == 128 + number
    line = error.splitlines()[-1]
    assert line.startswith("stopped (")
    assert "run the same command again" in line
    assert not (tmp_path / "dataset").exists()
    assert not list(tmp_path.rglob("*.calm.partial"))
    assert statuses(tmp_path) <= {"KILLED", "FINISHED"}


TRAINING = ["--set", "autoencoder.steps=1000000", "--set", "autoencoder.log_interval=1"]


@pytest.mark.parametrize("number", SIGNALS)
def test_training_saves_what_it_is_at(number: signal.Signals, dataset_uri: str, tmp_path: Path) -> None:
    arguments = ["--profile", str(MINI), "--dataset", dataset_uri, "--output", "out", *TRAINING]
    with at_work(tmp_path, "train", "autoencoder", *arguments) as program:
        program.said(lambda event: event.done > 1)
        os.killpg(program.process.pid, number)
        exit_code, error = program.ended()
    assert exit_code == 75
    assert error.splitlines()[-1].startswith("stopped after step ")
    assert "run again to continue from there" in error.splitlines()[-1]
    assert list(tmp_path.glob("home/checkpoints/*/step-*/manifest.json"))
    assert statuses(tmp_path) == {"KILLED"}


@NEEDS_MASKS
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "stopped (Ctrl-C)"), (signal.SIGTERM, "stopped (SIGTERM)")]
)
def test_training_that_is_stopped_twice_ends_as_it_is(
    number: signal.Signals, said: str, dataset_uri: str, tmp_path: Path
) -> None:
    """The rank is held, so that it cannot save anything."""
    arguments = ["--profile", str(MINI), "--dataset", dataset_uri, "--output", "out", *TRAINING]
    with at_work(tmp_path, "train", "autoencoder", *arguments) as program:
        program.said(lambda event: event.done > 1)
        rank = next(process for process in program.below() if "calm_core.training.worker" in process.cmdline())
        rank.suspend()
        # Of two signals that wait, the kernel gives the lower number first: it would be asked, and only then be held.
        program.wait_until(lambda: rank.status() == psutil.STATUS_STOPPED)
        program.process.send_signal(number)
        program.wait_until(lambda: has_signal(rank.pid, signal.SIGTERM, "ShdPnd"))
        time.sleep(1.1)  # sooner, a second SIGTERM would be the same request
        program.process.send_signal(number)
        exit_code, error = program.ended()
    assert exit_code == 128 + number
    assert error.splitlines()[-1].startswith(f"{said}; run the same command again")


@pytest.mark.parametrize("number", SIGNALS)
def test_evaluating_stops(
    number: signal.Signals, dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    autoencoder, calm = model_uris
    arguments = [calm, "--autoencoder", autoencoder, "--dataset", dataset_uri, "--output", "out"]
    settings = ["--profile", str(MINI), "--set", "evaluation.prompt_tokens=1000000"]
    with at_work(tmp_path, "evaluate", *arguments, *settings) as program:
        program.said(lambda event: event.note.startswith("writing text"))
        os.killpg(program.process.pid, number)
        exit_code, error = program.ended()
    assert exit_code == 128 + number
    assert error.splitlines()[-1].startswith("stopped (")
    assert statuses(tmp_path) == {"KILLED"}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_stops(number: signal.Signals, tmp_path: Path) -> None:
    with at_work(tmp_path, "run", "--profile", str(MINI), "--source", texts(tmp_path)) as program:
        program.wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob("home/logs/*/progress.jsonl")))
        os.killpg(program.process.pid, number)
        exit_code, error = program.ended()
    assert exit_code == 128 + number
    line = error.splitlines()[-1]
    assert line.startswith("stopped (")
    assert "run the same command again: finished stages come from the cache" in line
    assert statuses(tmp_path) <= {"KILLED", "FINISHED"}
    assert "KILLED" in statuses(tmp_path)


@NEEDS_MASKS
def test_a_signal_during_the_imports_is_one_line_too(tmp_path: Path) -> None:
    with at_work(tmp_path, "generate", "a", "--model", "nowhere") as program:
        program.wait_until(lambda: has_signal(program.process.pid, signal.SIGHUP, "SigCgt"))
        program.process.send_signal(signal.SIGINT)
        exit_code, error = program.ended()
    assert exit_code == 130
    assert error.splitlines() == ["stopped (Ctrl-C); run the same command again to begin anew"]


def test_a_closed_terminal_that_is_told_twice_is_one_request() -> None:
    """The shell and the system both tell of it; what is open shall be closed nevertheless."""
    code = (
        "import time\nfrom calm_cli.stopping import Ending\n"
        "with Ending().listening():\n try:\n  print('begun', flush=True)\n  time.sleep(60)\n"
        " finally:\n  time.sleep(0.5)\n  print('closed', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)  # long enough to be seen apart, as the second one may be
    process.send_signal(signal.SIGHUP)
    said, error = process.communicate(timeout=_SECONDS)
    assert (process.returncode, said) == (128 + signal.SIGHUP, "closed\n")
    assert error == "stopped (the terminal was closed); run the same command again to begin anew\n"
