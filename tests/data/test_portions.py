"""Portions of a partition: side by side or in turn, killed and run again, their bytes are those of the whole."""

import gzip
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calm_core.config import DataConfig
from calm_core.data.preparing import scan, tokenize
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.preparing.workers import Workers
from calm_core.data.sources import partitions as partitioning
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.formats import Document
from calm_core.data.sources.partitions import Partition, Portion
from calm_core.data.stage import prepare_data
from calm_core.errors import CalmError
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from tests.data.test_faults import flip
from tests.data.test_prepare import TOKENIZER, data_of, files_of, texts, write_lines

PORTION = 300  # bytes: some documents


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch)


def cut_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(partitioning, "_PORTION_BYTES", PORTION)
    patch.setattr(partitioning, "_OPENING_BYTES", 100)


def one_large_file(folder: Path) -> list[Path]:
    lines = write_lines(folder / "large.jsonl", [*texts(60), "", *texts(60)[10:15], *texts(30, seed=1)])
    with lines.open("a") as file:
        file.write("broken\n" * 3)
    return [lines]


def many_small_files(folder: Path) -> list[Path]:
    for i, text in enumerate(texts(40)):
        (folder / f"{i:02d}.txt").write_text(text)
    return [folder]


def files_of_all_kinds(folder: Path) -> list[Path]:
    """With empty ones, files that are not cut, and a row group that leaves other portions of its file empty."""
    (folder / "a.jsonl").write_text("")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(write_lines(folder / "b.jsonl", texts(30)).read_bytes()))
    pq.write_table(pa.table({"text": texts(60, seed=2)}), folder / "c.parquet", compression="none")
    (folder / "d.txt").write_text("\n\n".join(texts(50, seed=3)))
    (folder / "e.txt").write_text("")
    return [folder / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt", "e.txt")]


SOURCES = [one_large_file, many_small_files, files_of_all_kinds]


def settings_of(sources: list[Path], **settings: object) -> DataConfig:
    names = [f"{path}/*" if path.is_dir() else path for path in sources]
    shape = {"partitions": 2, "max_reject_fraction": 0.5, "txt_document_bytes": 50, "document_alignment": 4}
    return data_of(*names, **shape, **settings)


@pytest.mark.parametrize(
    ("sources", "packing", "processes"),
    [
        (one_large_file, "documents", (1, 2, 3)),
        (one_large_file, "contiguous", (1,)),
        (many_small_files, "documents", (2,)),
        (files_of_all_kinds, "documents", (1,)),
        (files_of_all_kinds, "contiguous", (2,)),
    ],
)
def test_the_bytes_are_those_of_whole_partitions(
    sources: Callable[[Path], list[Path]],
    packing: str,
    processes: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "texts").mkdir()
    data = settings_of(
        sources(tmp_path / "texts"),
        packing=packing,
        start_of_text=packing == "contiguous",
        near_duplicate_threshold=0.9,
    )
    whole = prepare_data(data, TOKENIZER, f"{tmp_path}/whole")
    cut_small(monkeypatch)
    planned = plan_partitions(data, f"{tmp_path}/plan")
    assert all(len(partition.portions()) > 3 for partition in planned)
    for workers in processes:
        made = prepare_data(data, TOKENIZER, f"{tmp_path}/of-{workers}", workers)
        assert files_of(made) == files_of(whole)
        assert made.digest == whole.digest
        assert not list(tmp_path.glob("*.parts/*.portions"))


@pytest.mark.parametrize("sources", SOURCES)
def test_portions_hold_the_documents_of_their_partition(
    sources: Callable[[Path], list[Path]], tmp_path: Path, small_portions: None
) -> None:
    (tmp_path / "texts").mkdir()
    data = settings_of(sources(tmp_path / "texts"))

    def told(part: Partition) -> list[tuple[str, str | None]]:
        return [(document.text, document.reason) for document in read_documents(part, data)]

    for partition in plan_partitions(data, f"{tmp_path}/plan"):
        assert [each for part in partition.portions() for each in told(part)] == told(partition)


def test_a_large_partition_has_so_many_portions_and_no_more(
    tmp_path: Path, small_portions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "_MOST_PORTIONS", 3)
    [partition] = plan_partitions(data_of(*one_large_file(tmp_path), partitions=1), f"{tmp_path}/plan")
    assert len(partition.portions()) == 3


_PROGRAM = f"""
import sys
from calm_core.config import DataConfig
from calm_core.data.preparing.scan import scan_partitions
from calm_core.data.preparing.tokenize import tokenize_partitions
from calm_core.data.preparing.workers import Workers
from calm_core.data.sources import partitions

partitions._PORTION_BYTES = {PORTION}
step, partition, data, *uris = sys.argv[1:]
do = {{"scan": scan_partitions, "tokenise": tokenize_partitions}}[step]
inputs = [partitions.Partition.model_validate_json(partition)], DataConfig.model_validate_json(data)
with Workers(2) as workers:
    do(*inputs, *uris[:-1], uris[-1:], workers)
"""


@dataclass
class Task:
    """A step of one partition, and what it makes in one process that nothing disturbs."""

    step: str
    partition: Partition
    data: DataConfig
    inputs: list[str]
    folder: Path
    expected: Artifact[Any]

    @property
    def portions(self) -> Path:
        return self.folder / "made.portions"

    def finished(self) -> set[int]:
        return {int(path.parent.name) for path in self.portions.glob(f"*/{MANIFEST_NAME}")}

    def begun(self) -> "subprocess.Popen[bytes]":
        """The step at work in two processes, with some portions finished."""
        told = self.partition.model_dump_json(), self.data.model_dump_json()
        command = [sys.executable, "-c", _PROGRAM, self.step, *told, *self.inputs, str(self.folder / "made")]
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while len(self.finished()) < 5:
            assert process.poll() is None
            time.sleep(0.002)
        return process

    def again(self) -> tuple[Artifact[Any], list[int]]:
        """What the step makes now, and the portions that it reads for that."""
        module, read = {"scan": scan, "tokenise": tokenize}[self.step], []

        def reading(part: Partition, config: DataConfig) -> Iterator[Document]:
            assert isinstance(part, Portion)
            read.append(part.number)
            return read_documents(part, config)

        do: Any = {"scan": scan.scan_partitions, "tokenise": tokenize.tokenize_partitions}[self.step]
        with pytest.MonkeyPatch.context() as patch, Workers(1) as workers:
            patch.setattr(module, "read_documents", reading)
            [made] = do([self.partition], self.data, *self.inputs, [str(self.folder / "made")], workers)
        return made, read


@pytest.fixture(params=["scan", "tokenise"])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    data = data_of(write_lines(tmp_path / "texts.jsonl", texts(300)), partitions=1)
    [partition] = plan_partitions(data, f"{tmp_path}/plan")
    whole = scan.scan_partition(partition, data, f"{tmp_path}/whole")
    cut_small(monkeypatch)
    if request.param == "scan":
        return Task("scan", partition, data, [], tmp_path, whole)
    with Workers(1) as workers:
        [scanned] = scan.scan_partitions([partition], data, [f"{tmp_path}/scan"], workers)
    trained = train_tokenizer([partition], TOKENIZER, data, f"{tmp_path}/tokenizer")
    found = find_duplicates([scanned.uri], data, f"{tmp_path}/duplicates")
    monkeypatch.undo()
    shards = tokenize.tokenize_partition(partition, data, trained.uri, found.uri, f"{tmp_path}/shards")
    cut_small(monkeypatch)
    return Task("tokenise", partition, data, [trained.uri, found.uri], tmp_path, shards)


def test_a_killed_task_goes_on_from_its_finished_portions(task: Task) -> None:
    """All processes are killed at once, as a pod is."""
    process = task.begun()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished, portions = task.finished(), set(range(len(task.partition.portions())))
    assert 5 <= len(finished) < len(portions)
    made, read = task.again()
    assert sorted(read) == sorted(portions - finished)
    assert files_of(made) == files_of(task.expected)
    assert made.digest == task.expected.digest
    assert not task.portions.exists()
    assert task.again()[1] == []


def test_processes_end_with_the_task_that_has_begun_them(task: Task) -> None:
    process = task.begun()
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2
    process.kill()
    process.wait()
    assert psutil.wait_procs(below, timeout=20)[1] == []


def test_a_left_portion_that_is_damaged_or_another_is_made_anew(task: Task) -> None:
    process = task.begun()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = sorted(task.finished())
    damaged, emptied, other, source, *whole = finished
    flip(next(path for path in (task.portions / f"{damaged:05d}").rglob("*") if path.suffix in (".bin", ".parquet")))
    (task.portions / f"{emptied:05d}" / MANIFEST_NAME).write_text("")
    shutil.rmtree(task.portions / f"{other:05d}")
    shutil.copytree(task.portions / f"{source:05d}", task.portions / f"{other:05d}")
    made, read = task.again()
    assert {damaged, emptied, other} < {*read}
    assert not {source, *whole} & {*read}
    assert files_of(made) == files_of(task.expected)


def test_a_killed_process_is_one_line_and_the_others_end(tmp_path: Path, small_portions: None) -> None:
    """In a task as on one machine."""
    data = data_of(write_lines(tmp_path / "texts.jsonl", texts(600)), partitions=1)
    [partition] = plan_partitions(data, f"{tmp_path}/plan")
    others = set(multiprocessing.active_children())

    def kill_one() -> None:
        while not list(tmp_path.glob("scan.portions/*")):
            time.sleep(0.001)
        (set(multiprocessing.active_children()) - others).pop().kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with (
        pytest.raises(CalmError, match=r"^a preparing process was killed[^\n]*: what is finished is kept$"),
        Workers(2) as two,
    ):
        scan.scan_partitions([partition], data, [f"{tmp_path}/scan"], two)
    killer.join()
    assert set(multiprocessing.active_children()) <= others
