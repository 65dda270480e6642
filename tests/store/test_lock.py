"""Who may work in a folder: one at a time, a dead one's place is taken, and one that stood still learns of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from calm_core.errors import CalmError, StorageError
from calm_core.store import lock, storage
from calm_core.store.lock import FolderLock, Holder, LockLostError
from pipelines.local.object_store import BUCKET

ADVICE = "wait for it"


def holder_of(**changes: object) -> Holder:
    """What a process on another machine has written."""
    known = {"token": "0" * 32, "host": "far", "machine": "far away", "pid": 7, "started": 1.0, "since": 1.0}
    return Holder.model_validate(known | changes)


def left(uri: str, holder: Holder | bytes, number: int = 1) -> str:
    """Leave a lock; returns its file."""
    file = storage.join(uri, f".calm-lock-{number}")
    storage.write(file, holder if isinstance(holder, bytes) else holder.model_dump_json().encode())
    return file


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "DEAD_SECONDS", 1.0)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(lock, "_found_dead", set())


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_place") if request.param == "s3" else str(tmp_path / "folder")


def test_one_at_a_time_and_the_folder_is_as_it_was_afterwards(place: str) -> None:
    with FolderLock(place, ADVICE) as first:
        with pytest.raises(CalmError) as refused, FolderLock(place, ADVICE):
            pass
        assert str(refused.value).startswith(
            f"{place}: is being worked on by process {os.getpid()} on {socket.gethostname()}, since 20"
        )
        assert str(refused.value).endswith("; wait for it")
        assert refused.value.can_pass
        first.require()
    assert storage.names_in(place) == []
    assert not Path(place).exists()
    with FolderLock(place, ADVICE):
        storage.write(storage.join(place, "kept"), b"yes")
    assert storage.names_in(place) == ["kept"]


def test_of_many_who_come_at_once_one_gets_in(place: str) -> None:
    """Some find the place of one who is dead, and some nothing: either is claimed once."""
    for dead in (False, True):
        if dead:
            left(place, holder_of(machine=lock.machine(), pid=_ended().pid))
        inside, refused, over = [], [], threading.Event()

        def come(inside: list[str] = inside, refused: list[str] = refused, over: threading.Event = over) -> None:
            try:
                with FolderLock(place, ADVICE) as held:
                    inside.append(held.token)
                    over.wait(60)
                    held.require()
            except CalmError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda inside=inside, refused=refused: len(inside) + len(refused) == 8)
        over.set()
        for thread in threads:
            thread.join()
        assert len(inside) == 1
        assert len(refused) == 7
        assert storage.names_in(place) == []


def _ended() -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


def test_of_a_killed_holder_here_the_place_is_taken_once_what_it_has_started_is_gone(tmp_path: Path) -> None:
    """The killed process is still listed, as one that nobody has asked for its exit code."""
    code = (
        "import sys, time; from calm_core.store.lock import FolderLock\n"
        f"with FolderLock({str(tmp_path)!r}, ''):\n print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(CalmError, match=f"process {process.pid} on "), FolderLock(str(tmp_path), ADVICE):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        looks = iter([True, True, False])
        with FolderLock(str(tmp_path), ADVICE, is_at_work=lambda: next(looks)) as held:
            held.require()
        assert next(looks, None) is None
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_holder_has_started_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(lock, "ENDING_SECONDS", 0.1)
    dead = _ended().pid
    left(str(tmp_path), holder_of(machine=lock.machine(), pid=dead))
    says = f"is being worked on by what process {dead} has started, which itself is gone; wait for it"
    with pytest.raises(CalmError, match=says), FolderLock(str(tmp_path), ADVICE, is_at_work=lambda: True):
        pass


@pytest.mark.parametrize("seconds", [5, 1e6])
def test_a_process_that_has_the_number_of_a_dead_holder_is_none(tmp_path: Path, seconds: float) -> None:
    """Where a container starts again after seconds, its processes have the numbers that they had."""
    started = psutil.Process().create_time() - psutil.boot_time() + seconds
    left(str(tmp_path), holder_of(machine=lock.machine(), pid=os.getpid(), started=started))
    with FolderLock(str(tmp_path), ADVICE):
        assert [path.name for path in tmp_path.iterdir()] == [".calm-lock-2"]


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_holder_here_is_alive_however_the_clock_is_set(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderLock(str(tmp_path), ADVICE):
        boot_time = psutil.boot_time()
        # The kernel tells it by the clock as it is set now.
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + seconds)
        with pytest.raises(CalmError, match="is being worked on by"), FolderLock(str(tmp_path), ADVICE):
            pass


@pytest.mark.parametrize("content", [holder_of(), b"", b'{"token": "half', b"{}"], ids=["whole", "empty", "half", "no"])
def test_a_holder_elsewhere_that_shows_no_sign_of_life_is_dead(
    tmp_path: Path, quick: None, content: Holder | bytes
) -> None:
    """Also where its file is damaged. Another lock of the same process is not waited for again."""
    told: list[str] = []
    left(str(tmp_path / "a"), content)
    left(str(tmp_path / "b"), content)
    with FolderLock(str(tmp_path / "a"), ADVICE, tell=told.append) as held:
        held.require()
        assert "waiting 1 s for a sign of life" in told[0]
    with FolderLock(str(tmp_path / "b"), ADVICE, tell=told.append):
        assert len(told) == (1 if isinstance(content, Holder) else 2)


def test_a_holder_elsewhere_that_shows_one_is_left_alone(tmp_path: Path, quick: None) -> None:
    file = left(str(tmp_path), holder_of())
    told: list[str] = []

    def beat(line: str) -> None:
        told.append(line)
        storage.write(file, holder_of(beat=1).model_dump_json().encode())

    with (
        pytest.raises(CalmError, match=r"is being worked on by process 7 on far, since 1970-01-01 .*; wait for it"),
        FolderLock(str(tmp_path), ADVICE, tell=beat),
    ):
        pass
    assert len(told) == 1
    assert [path.name for path in tmp_path.iterdir()] == [".calm-lock-1"]


def test_a_holder_elsewhere_that_ends_meanwhile_makes_room(tmp_path: Path, quick: None) -> None:
    file = left(str(tmp_path), holder_of())
    with FolderLock(str(tmp_path), ADVICE, tell=lambda line: storage.remove([file])) as held:
        held.require()


def test_a_holder_that_stood_still_learns_that_another_one_has_come(place: str, quick: None) -> None:
    """It is stopped as by SIGSTOP or a closed lid; to this process it seems to be on another machine."""
    code = f"""
import sys
from calm_core.errors import CalmError
from calm_core.store import lock
lock.machine = lambda: "another"
lock.BEAT_SECONDS = 0.05
with lock.FolderLock({place!r}, "") as held:
    print(held.token, flush=True)
    sys.stdin.readline()
    try:
        held.remove_folder()
    except CalmError as error:
        print(error, flush=True)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        token = process.stdout.readline().strip()
        with pytest.raises(CalmError, match="is being worked on by"), FolderLock(place, ADVICE):
            pass
        process.send_signal(signal.SIGSTOP)
        with FolderLock(place, ADVICE) as held:
            process.send_signal(signal.SIGCONT)
            with pytest.raises(CalmError, match=f"is held by another one now .process {os.getpid()} on "):
                lock.require(place, token)
            said, _ = process.communicate("go on\n", timeout=60)
            assert "since this one stood still for long; run the same command again once nothing works there" in said
            assert process.returncode == 0
            held.require()
            assert storage.names_in(place) == [".calm-lock-2"]


def test_processes_of_a_dead_holder_go_on_for_one_who_takes_its_token_over(tmp_path: Path, quick: None) -> None:
    """The dead one turns out to have stood still, and holds it no longer."""
    uri, token = str(tmp_path / "folder"), "a" * 32
    first = FolderLock(uri, ADVICE, token=token)
    with first:
        file = left(uri, holder_of(token=token, beat=1), 2)  # as if on another machine, which is gone by now
        with FolderLock(uri, ADVICE, token=token) as second:
            assert not Path(file).exists()
            lock.require(uri, token)
            second.require()
            with pytest.raises(LockLostError):
                first.require()
            time.sleep(0.2)  # in which both would beat
            assert [path.name for path in Path(uri).iterdir()] == [".calm-lock-3"]
    assert not Path(uri).exists()


def test_a_lock_that_is_gone_is_not_held(tmp_path: Path) -> None:
    with FolderLock(str(tmp_path), ADVICE) as held:
        (tmp_path / ".calm-lock-1").unlink()
        with pytest.raises(CalmError, match=r"its lock is gone, since this one stood still for long"):
            held.require()


def test_a_holder_shows_itself_again_once_the_storage_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    file, failures = tmp_path / ".calm-lock-1", []

    def fail(uri: str, data: bytes) -> None:
        failures.append(uri)
        raise StorageError("the disk is full")

    with FolderLock(str(tmp_path), ADVICE) as held:
        with monkeypatch.context() as broken:
            broken.setattr(storage, "write", fail)
            wait_for(lambda: len(failures) > 2)
            before = file.read_bytes()
        wait_for(lambda: file.read_bytes() != before)
        held.require()


def test_what_is_known_of_a_lock_before_it_is_taken(tmp_path: Path) -> None:
    uri = str(tmp_path)
    assert not lock.may_be_held(uri)
    left(uri, holder_of())
    assert lock.may_be_held(uri)
    left(uri, b"damaged", 2)
    assert lock.may_be_held(uri)
    left(uri, holder_of(machine=lock.machine(), pid=_ended().pid), 3)
    assert not lock.may_be_held(uri)


def test_a_store_without_conditions_lets_one_in(s3_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older object store ignores them, and the last writer wins: the others see so when they look again."""
    import s3fs

    plain = s3fs.S3FileSystem.pipe_file
    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", lambda self, path, data, mode: plain(self, path, data))
    claims: list[bool] = []
    uri = f"s3://{BUCKET}/{s3_place.rpartition('/')[2]}/file"
    threads = [threading.Thread(target=lambda i=i: claims.append(storage.claim(uri, bytes([i])))) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claims) == [False] * 5 + [True]
