"""Faults of files, disks and processes: one clear line or one counted reject, and the next run gives the same bytes."""

import gc
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calm_core.config import DataConfig
from calm_core.data.preparing.merge import Prepared, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.reading.loader import Loader
from calm_core.data.reading.order import EpochOrder
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, CalmError, SourceError, StorageError
from calm_core.store.artifact import UNFINISHED_NAME, Artifact
from calm_core.store.facts import DatasetFacts
from tests.data.test_prepare import TOKENIZER, data_of, files_of, texts, write_lines

TEXTS = texts(1000)
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
WHOLE = texts(20, seed=1)  # of a file that nothing happens to, with documents of both splits


def kept_of(damaged: Path, folder: Path, mode: str = "reject") -> int:
    """Prepare a damaged source beside a whole one; returns how many documents of the damaged one are kept."""
    whole = write_lines(folder / "whole.jsonl", WHOLE)
    data = data_of(whole, damaged, partitions=3, damaged_files=mode)
    facts = prepare_data(data, TOKENIZER, f"{folder}/dataset").facts
    assert facts.rejected == {"damaged_file": 1}
    assert facts.documents_in == facts.documents_out + 1
    return facts.documents_out - len(WHOLE)


def check_refusal(damaged: Path, folder: Path, name: str) -> None:
    """A damaged source is refused on one line that names its file."""
    with pytest.raises(SourceError, match=rf"{name}: is truncated or damaged \(.+\); .*damaged_files=reject") as caught:
        kept_of(damaged, folder, "fail")
    assert "\n" not in str(caught.value)


def compressed(codec: str) -> tuple[bytes, list[int]]:
    """LINES, and how many of the bytes hold the lines up to each one."""
    file, ends = pa.BufferOutputStream(), []
    with pa.CompressedOutputStream(file, codec) as stream:
        for line in LINES:
            stream.write(line)
            stream.flush()
            ends.append(file.tell())
        stream.close()
        return bytes(file.getvalue()), ends


@pytest.mark.parametrize("cut", ["first byte", "header", "middle", "last byte"])
@pytest.mark.parametrize(("suffix", "codec", "header"), [("gz", "gzip", 10), ("zst", "zstd", 6)])
def test_a_truncated_compressed_file_is_refused_or_kept_up_to_the_cut(
    suffix: str, codec: str, header: int, cut: str, tmp_path: Path
) -> None:
    data, ends = compressed(codec)
    size = {"first byte": 1, "header": header, "middle": len(data) // 2, "last byte": len(data) - 1}[cut]
    path = tmp_path / f"cut.jsonl.{suffix}"
    path.write_bytes(data[:size])
    check_refusal(path, tmp_path, path.name)
    kept, complete = kept_of(path, tmp_path), sum(end <= size for end in ends)
    starts = [0, *accumulate(map(len, LINES))]
    # Arrow gives all of the 4096 bytes that it is asked for, or none of them.
    assert starts[complete] - 4096 - max(map(len, LINES)) <= starts[kept] <= starts[-1]
    assert kept or complete < len(LINES) // 4


@pytest.mark.parametrize("damage", ["flip", "garbage"])
def test_a_gzip_file_of_other_bytes_is_refused(damage: str, tmp_path: Path) -> None:
    data = bytearray(compressed("gzip")[0])
    data[len(data) // 2] ^= 1
    path = tmp_path / "wrong.jsonl.gz"
    path.write_bytes(data if damage == "flip" else b"this was never compressed\n" * 100)
    check_refusal(path, tmp_path, path.name)


@pytest.mark.parametrize("size", [1, 50, -1])
def test_a_truncated_parquet_file_is_refused_or_one_reject_in_any_number_of_partitions(
    size: int, tmp_path: Path
) -> None:
    path = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=50)
    path.write_bytes(path.read_bytes()[:size])
    check_refusal(path, tmp_path, path.name)
    assert kept_of(path, tmp_path) == 0


def test_a_parquet_file_with_a_wrong_page_keeps_what_is_before_it(tmp_path: Path) -> None:
    """Arrow's message has several lines there."""
    path = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=50, use_dictionary=False)
    page = pq.read_metadata(path).row_group(10).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[page : page + 8] = b"\xff" * 8
    path.write_bytes(content)
    check_refusal(path, tmp_path, path.name)
    assert kept_of(path, tmp_path) >= 500  # with another partition's, which has no damage


def saved_by_datasets(folder: Path) -> Path:
    folder.mkdir()
    with (
        pa.OSFile(f"{folder}/data.arrow", "wb") as file,
        pa.ipc.new_stream(file, pa.schema({"text": pa.string()})) as out,
    ):
        for batch in pa.table({"text": TEXTS}).to_batches(50):
            out.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder / "data.arrow"


@pytest.mark.parametrize(("size", "kept"), [(1, 0), (50, 0), (0.5, 450), (-9, 950)])
def test_a_truncated_arrow_file_is_refused_or_kept_up_to_the_cut(size: float, kept: int, tmp_path: Path) -> None:
    """The last 8 bytes only say that there is no more."""
    file = saved_by_datasets(tmp_path / "saved")
    content = file.read_bytes()
    file.write_bytes(content[: int(size * len(content)) if 0 < size < 1 else int(size)])
    check_refusal(file.parent, tmp_path, file.name)
    found = kept_of(file.parent, tmp_path)
    assert kept <= found < kept + 100 and found % 50 == 0


def test_a_wrong_offset_in_an_arrow_file_is_refused_and_not_followed(tmp_path: Path) -> None:
    """Anywhere in memory it would point to: the process would die without a word."""
    file = saved_by_datasets(tmp_path / "saved")
    content = bytearray(file.read_bytes())
    offsets = np.array([0, *accumulate(len(text) for text in TEXTS[:50])], dtype=np.int32).tobytes()
    place = content.index(offsets) + 4 * 25
    content[place : place + 4] = (2**30).to_bytes(4, "little")
    file.write_bytes(content)
    check_refusal(file.parent, tmp_path, file.name)
    assert kept_of(file.parent, tmp_path) == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Artifact[DatasetFacts]]:
    """A dataset, and the settings that make it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = data_of(write_lines(folder / "texts.jsonl", TEXTS), partitions=8, rows_per_group=2)
    return data, prepare_data(data, TOKENIZER, f"{folder}/dataset")


@pytest.fixture
def train(undisturbed: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path) -> TokenDataset:
    """A copy of its sequences: hundreds of shards, of which a loader has few open."""
    shutil.copytree(undisturbed[1].uri, tmp_path / "dataset")
    return TokenDataset(f"{tmp_path}/dataset", "train")


def shard_of(dataset: TokenDataset, number: int) -> Path:
    return Path(dataset.uri, dataset.facts.splits["train"].shards[number].path)


def epoch_of(dataset: TokenDataset) -> Iterator[list[int]]:
    loader = Loader(dataset, 1, seed=0)
    return (loader.next_batch().tokens[0].tolist() for _ in range(dataset.num_sequences))


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_shard_that_is_lost_under_a_running_loader_is_named_once_it_is_needed(
    damage: str, train: TokenDataset
) -> None:
    expected = list(epoch_of(train))
    order = EpochOrder(train.groups_of_shard, seed=0, epoch=0)
    windows = [order.window(number) for number in range(order.window_at(train.num_sequences - 1) + 1)]
    lost = windows[-1].groups[-1].shard
    first = next(window for window in windows if lost in {group.shard for group in window.groups})

    running = epoch_of(TokenDataset(train.uri, "train"))
    rows = [next(running)]
    path = shard_of(train, lost)
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{path.parent.name}/{path.name}: file is {damage}"):
        rows.extend(running)
    assert rows == expected[: first.start]


def test_shards_that_are_deleted_while_they_are_read_give_right_sequences_or_a_clear_error(train: TokenDataset) -> None:
    """A thread that has one open reads on; one that comes later cannot."""
    expected = list(epoch_of(train))
    running = epoch_of(TokenDataset(train.uri, "train"))
    rows = [next(running)]
    for shard in {group.shard for group in EpochOrder(train.groups_of_shard, seed=0, epoch=0).window(0).groups}:
        shard_of(train, shard).unlink()
    try:
        rows.extend(running)
    except ArtifactError as error:
        assert re.search(r"train/part-\S+\.parquet: file is missing; delete \S+ and run its stage again$", str(error))
        assert rows == expected[: len(rows)]
    else:
        assert rows == expected


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes at a folder; where none may be mounted the test is skipped, but never in CI."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        reason = f"a small disk cannot be mounted ({mounted.stderr.strip()}); run as root on Linux"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def check_no_half_file(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.name.endswith(".partial")
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        if path.suffix == ".parquet":
            pq.ParquetFile(path).read()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.99])
def test_a_full_disk_is_one_clear_line_and_with_more_room_the_same_command_finishes(
    share: float, undisturbed: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    """The disk is full at a share of all that is written, so in another step."""
    data, expected = undisturbed
    made = [path for uri in (expected.uri, f"{expected.uri}.parts") for path in Path(uri).rglob("*") if path.is_file()]
    sizes = {path.stat().st_ino: path.stat().st_size for path in made}  # a file may have two names
    pages = sum(-(-size // 4096) for size in sizes.values())
    disk = tmp_path / "disk"
    with small_disk(disk, int(share * pages) * 4096):
        with pytest.raises(
            StorageError, match=r"^[^\n]*: cannot be written, the disk is full; free space, then run again$"
        ):
            prepare_data(data, TOKENIZER, f"{disk}/dataset")
        gc.collect()  # what is left of writers must not complain
        check_no_half_file(disk)
        with pytest.raises(ArtifactError):
            Artifact(f"{disk}/dataset", DatasetFacts)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert files_of(prepare_data(data, TOKENIZER, f"{disk}/dataset")) == files_of(expected)


def flip(path: Path) -> None:
    """Change a byte in its place, as a disk does: every name of the file has it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Artifact[DatasetFacts]]:
    """A dataset of 3 partitions with keys of near-duplicates, and the settings that make it."""
    folder = tmp_path_factory.mktemp("small")
    documents = texts(20) + texts(20)[:5]
    data = data_of(write_lines(folder / "texts.jsonl", documents), partitions=3, near_duplicate_threshold=0.9)
    return data, prepare_data(data, TOKENIZER, f"{folder}/dataset")


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "left there"])
@pytest.mark.parametrize("kind", ["tokenizer.json", "train/*", "validation/*", "documents/*"])
def test_doing_what_the_message_about_a_damaged_dataset_says_repairs_it(
    kind: str, deleted: bool, small: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    """Its files are second names of those of the parts, which are damaged with them."""
    data, expected = small
    dataset = prepare_data(data, TOKENIZER, f"{tmp_path}/dataset")
    damaged = next(Path(dataset.uri).glob(kind))
    assert damaged.stat().st_nlink > 1
    flip(damaged)
    with pytest.raises(ArtifactError, match=rf"{damaged.name}: file is damaged .* delete {dataset.uri} and run"):
        dataset.check_files()
    if deleted:
        shutil.rmtree(dataset.uri)
    assert files_of(prepare_data(data, TOKENIZER, dataset.uri)) == files_of(expected)


@pytest.mark.parametrize("damage", ["flipped", "gone", "emptied"])
def test_a_damaged_part_is_made_anew_and_never_published(
    damage: str, small: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    """Each file of each part, one after the other; the dataset is new each time, so that it needs the parts."""
    data, expected = small
    parts = Path(prepare_data(data, TOKENIZER, f"{tmp_path}/dataset").uri + ".parts")
    files = sorted(path.relative_to(parts) for path in parts.rglob("*") if path.is_file())
    steps = {"plan", "scan", "duplicates", "tokenizer", "shards"}
    assert {file.parts[0].split("-")[0] for file in files if file.name != UNFINISHED_NAME} == steps
    for file in files:
        match damage:
            case "flipped":
                flip(parts / file)
            case "gone":
                (parts / file).unlink()
            case "emptied":
                os.truncate(parts / file, 0)
        shutil.rmtree(tmp_path / "dataset")
        assert files_of(prepare_data(data, TOKENIZER, f"{tmp_path}/dataset")) == files_of(expected), file


def test_a_damaged_part_is_refused_where_it_cannot_be_made_anew(
    small: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    """As in a pipeline, where the parts are those of other tasks."""
    data, _ = small
    dataset = prepare_data(data, TOKENIZER, f"{tmp_path}/dataset")
    place = f"{dataset.uri}.parts"
    prepared = Prepared(
        partitions=plan_partitions(data, f"{place}/plan"),
        scan_uris=[f"{place}/scan-{i:05d}" for i in range(3)],
        shards_uris=[f"{place}/shards-{i:05d}" for i in range(3)],
        duplicates_uri=f"{place}/duplicates",
        tokenizer_uri=f"{place}/tokenizer",
    )
    for kind in ("scan-*/keys/*", "shards-*/*.parquet", "tokenizer/tokenizer.json"):
        damaged = next(Path(place).glob(kind))
        flip(damaged)
        with pytest.raises(ArtifactError, match=rf"{damaged.name}: file is damaged"):
            merge_partitions(data, prepared, f"{tmp_path}/again")
        with pytest.raises(ArtifactError):
            Artifact(f"{tmp_path}/again", DatasetFacts)
        flip(damaged)


def test_a_full_cache_of_shards_is_one_clear_line(
    undisturbed: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(undisturbed[1].uri, "/calm-faults", recursive=True)
    monkeypatch.setenv("CALM_CACHE", f"{tmp_path}/disk/cache")
    message = r"^[^\n]*/disk/cache: the cache of shards cannot be written \(No space left.* set CALM_CACHE to another"
    with small_disk(tmp_path / "disk", 16 * 4096), pytest.raises(CalmError, match=message):
        list(epoch_of(TokenDataset("memory://calm-faults", "train")))
    memory.rm("/calm-faults", recursive=True)


@pytest.mark.parametrize("moment", ["scan-*/**/*", "shards-*/.*.partial"])
def test_a_killed_worker_is_one_clear_line_and_the_next_run_gives_the_same_bytes(
    moment: str, undisturbed: tuple[DataConfig, Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    """It is killed once a file shows that its step has begun."""
    data, expected = undisturbed

    def kill_one() -> None:
        while not list(tmp_path.glob(f"dataset.parts/{moment}")):
            time.sleep(0.001)
        (set(multiprocessing.active_children()) - others).pop().kill()

    others = set(multiprocessing.active_children())
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.raises(CalmError, match=r"^a preparing process was killed[^\n]* run the same command again"):
        prepare_data(data, TOKENIZER, f"{tmp_path}/dataset", workers=2)
    killer.join()
    assert files_of(prepare_data(data, TOKENIZER, f"{tmp_path}/dataset")) == files_of(expected)
