"""The data plane on a real S3 server: the same bytes as on a local disk, through storms and kills."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.reading.loader import Loader
from calm_core.data.sources import partitions
from calm_core.data.sources.documents import read_documents
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, CalmError, SourceError, StorageError
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts
from pipelines.local.object_store import BUCKET
from tests.object_store import Trouble, environment, troubled

LINES = "".join(json.dumps({"text": f"text {i}: " + "a river flows " * (i % 19)}) + "\n" for i in range(400))
TOKENIZER = TokenizerConfig(vocab_size=270)


def data_of(source: str, **settings: object) -> DataConfig:
    shape = {"sequence_length": 16, "rows_per_group": 4, "rows_per_shard": 16, "validation_fraction": 0.2}
    return DataConfig.model_validate({"sources": [source], "partitions": 3} | shape | settings)


@pytest.fixture
def trouble(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Trouble]]:
    """An empty s3:// folder behind a proxy that makes trouble."""
    with troubled(s3_endpoint) as (endpoint, trouble), environment(monkeypatch, endpoint, tmp_path / "cache"):
        yield f"s3://{BUCKET}/{tmp_path.name}", trouble


@pytest.fixture
def local(tmp_path: Path) -> Artifact[DatasetFacts]:
    (tmp_path / "texts.jsonl").write_text(LINES)
    return prepare_data(data_of(f"{tmp_path}/texts.jsonl"), TOKENIZER, f"{tmp_path}/dataset")


def files_of(artifact: Artifact[DatasetFacts]) -> dict[str, bytes]:
    return {entry.path: artifact.read(entry.path) for entry in artifact.manifest.files}


def all_rows(uri: str) -> list[list[int]]:
    train = TokenDataset(uri, "train")
    loader = Loader(train, 1, seed=0)
    rows = [loader.next_batch().tokens[0].tolist() for _ in range(train.num_sequences)]
    for stream in loader._streams:  # its threads read on, and would change the cache while a test looks at it
        stream._decoding.shutdown(cancel_futures=True)
        stream._fetching.shutdown(cancel_futures=True)
    return rows


@pytest.mark.parametrize("workers", [1, 3])
def test_s3_and_disk_hold_the_same_bytes(s3_place: str, local: Artifact[DatasetFacts], workers: int) -> None:
    storage.write(f"{s3_place}/texts.jsonl", LINES.encode())
    remote = prepare_data(data_of(f"{s3_place}/*.jsonl"), TOKENIZER, f"{s3_place}/dataset", workers)
    assert files_of(remote) == files_of(local)
    assert remote.manifest.results == local.manifest.results
    assert all_rows(remote.uri) == all_rows(local.uri)


def test_portions_in_s3_give_the_same_bytes_and_are_removed(
    s3_place: str, local: Artifact[DatasetFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{s3_place}/texts.jsonl", LINES.encode())
    monkeypatch.setattr(partitions, "_PORTION_BYTES", len(LINES) // 7)
    remote = prepare_data(data_of(f"{s3_place}/texts.jsonl"), TOKENIZER, f"{s3_place}/dataset")
    assert files_of(remote) == files_of(local)
    assert not any(".portions" in uri for uri in storage.files_below(s3_place))


def test_storms_of_errors_and_slow_answers_change_nothing(
    trouble: tuple[str, Trouble], local: Artifact[DatasetFacts]
) -> None:
    place, storm = trouble
    storage.write(f"{place}/texts.jsonl", LINES.encode())
    storm.delay, storm.errors = 0.01, 3
    remote = prepare_data(data_of(f"{place}/texts.jsonl"), TOKENIZER, f"{place}/dataset")
    assert files_of(remote) == files_of(local)
    storm.errors = 4
    assert all_rows(remote.uri) == all_rows(local.uri)
    assert storm.errors == 0  # all of them were met


def test_storage_that_stays_away_is_one_clear_line(
    trouble: tuple[str, Trouble], local: Artifact[DatasetFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, storm = trouble
    storage.write(f"{place}/texts.jsonl", LINES.encode())
    remote = prepare_data(data_of(f"{place}/texts.jsonl"), TOKENIZER, f"{place}/dataset")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3fs.S3FileSystem.clear_instance_cache()
    train = TokenDataset(remote.uri, "train")
    storm.errors = 10**6
    with pytest.raises(StorageError, match=r"dataset/train/.*: the storage failed \(.*; check that it") as caught:
        Loader(train, 4, seed=0).next_batch()
    assert "\n" not in str(caught.value)


def test_a_damaged_shard_in_the_store_is_refused_by_name(s3_place: str, local: Artifact[DatasetFacts]) -> None:
    storage.write(f"{s3_place}/texts.jsonl", LINES.encode())
    remote = prepare_data(data_of(f"{s3_place}/texts.jsonl"), TOKENIZER, f"{s3_place}/dataset")
    shard = remote.facts.splits["train"].shards[2].path
    content = bytearray(remote.read(shard))
    content[len(content) // 2] ^= 1
    storage.write(f"{remote.uri}/{shard}", bytes(content))
    with pytest.raises(ArtifactError, match=rf"{shard}: file is damaged"):
        all_rows(remote.uri)
    storage.remove([f"{remote.uri}/{shard}"])
    with pytest.raises(ArtifactError, match=rf"{shard}: file is missing"):
        all_rows(remote.uri)


def test_a_shard_is_fetched_once_for_all_processes(
    trouble: tuple[str, Trouble], local: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    place, storm = trouble
    storage.write(f"{place}/texts.jsonl", LINES.encode())
    remote = prepare_data(data_of(f"{place}/texts.jsonl"), TOKENIZER, f"{place}/dataset")
    program = (
        "import sys; from calm_core.data.reading.dataset import *; "
        "from calm_core.data.reading.loader import *; d = TokenDataset(sys.argv[1], 'train'); "
        "l = Loader(d, 2, seed=0, rank=int(sys.argv[2]), world_size=2); "
        "[l.next_batch() for _ in range(d.num_sequences // 2)]"
    )
    before = storm.requests
    ranks = [subprocess.Popen([sys.executable, "-c", program, remote.uri, str(rank)]) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    shards = len(remote.facts.splits["train"].shards)
    cached = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert len(cached) == shards
    assert storm.requests - before < 2 * shards + 20  # one HEAD and one GET each, and each rank's manifest


def test_the_cache_is_bounded_and_a_damaged_copy_is_fetched_again(
    s3_place: str, local: Artifact[DatasetFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{s3_place}/texts.jsonl", LINES.encode())
    remote = prepare_data(data_of(f"{s3_place}/texts.jsonl"), TOKENIZER, f"{s3_place}/dataset")
    sizes = [entry.size for entry in remote.manifest.files if entry.path.startswith("train/")]
    monkeypatch.setenv("CALM_CACHE_BYTES", str(3 * max(sizes)))
    expected = all_rows(local.uri)
    assert all_rows(remote.uri) == expected
    cached = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert 0 < sum(path.stat().st_size for path in cached) <= 3 * max(sizes) < sum(sizes)
    for path in cached:
        path.write_bytes(b"rot" + path.read_bytes()[3:])
    assert all_rows(remote.uri) == expected


@pytest.mark.parametrize("on_s3", [False, True])
def test_killed_preparing_processes_leave_no_trace_in_the_bytes(
    on_s3: bool, s3_place: str, local: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    """Whenever the kill comes, the next run gives the bytes of an undisturbed one, and no half file shows."""
    folder = s3_place if on_s3 else f"{tmp_path}/killed"
    storage.write(f"{folder}/texts.jsonl", LINES.encode())
    output = f"{folder}/dataset"
    program = (
        "import sys; from calm_core.config import *; from calm_core.data.stage import prepare_data\n"
        "if __name__ == '__main__':\n"
        "    prepare_data(DataConfig.model_validate_json(sys.argv[1]), TokenizerConfig(vocab_size=270), sys.argv[2])"
    )
    arguments = [data_of(f"{folder}/texts.jsonl").model_dump_json(), output]
    moments = random.Random(int(on_s3))
    kills = 0
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE) as worker:
            assert worker.stderr
            for _ in range(moments.randrange(1, 8)):  # lines of progress, of about sixteen
                worker.stderr.readline()
            time.sleep(moments.uniform(0, 0.05))
            kills += worker.poll() is None
            worker.kill()
        for uri in storage.glob(f"{folder}/**/*.parquet"):
            data = storage.read(uri)
            assert data[:4] == data[-4:] == b"PAR1", uri
    assert kills
    again = subprocess.run([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL, check=True)
    assert again.returncode == 0
    assert files_of(Artifact(output, DatasetFacts)) == files_of(local)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_source_that_changes_after_planning_is_named(s3_place: str) -> None:
    """Also when its size stays: the store's tag tells."""
    storage.write(f"{s3_place}/texts.jsonl", LINES.encode())
    config = data_of(f"{s3_place}/texts.jsonl", partitions=1)
    [partition] = plan_partitions(config, f"{s3_place}/plan")
    storage.write(f"{s3_place}/texts.jsonl", LINES.replace("river", "RIVER").encode())
    with pytest.raises(SourceError, match=r"texts\.jsonl: changed or removed since the run was planned; run again"):
        scan_partition(partition, config, f"{s3_place}/scan")


def test_no_secret_is_written(s3_place: str) -> None:
    storage.write(f"{s3_place}/texts.jsonl", LINES.encode())
    prepare_data(data_of(f"{s3_place}/texts.jsonl"), TOKENIZER, f"{s3_place}/dataset")
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    for uri in storage.glob(f"{s3_place}/**"):
        if not storage.is_folder(uri):
            assert secret not in storage.read(uri)


def test_wrong_credentials_are_one_clear_line(s3_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(CalmError) as caught:
        prepare_data(data_of(f"{s3_place}/texts.jsonl"), TOKENIZER, f"{s3_place}/dataset")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lines", [400, 400_000], ids=["one request", "many requests"])
def test_an_object_that_is_replaced_under_its_reader_is_noticed(s3_place: str, lines: int, tmp_path: Path) -> None:
    """By text of equal size, while its first documents are in use."""
    text = b"".join(b'{"text": "text %06d of a river that flows"}\n' % i for i in range(lines))
    storage.write(f"{s3_place}/texts.jsonl", text)
    [partition] = plan_partitions(data := data_of(f"{s3_place}/texts.jsonl", partitions=1), f"{tmp_path}/plan")
    documents = read_documents(partition, data)
    assert next(documents).text == "text 000000 of a river that flows"
    storage.write(f"{s3_place}/texts.jsonl", text.replace(b"river", b"delta"))
    with pytest.raises(SourceError, match=r"texts\.jsonl: changed or removed since the run was planned; run again"):
        assert all("river" in document.text for document in documents)
