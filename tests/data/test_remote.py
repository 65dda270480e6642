"""Object stores: their files in fsspec are less than local ones, and reading them costs requests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.stage import prepare_data

LINES = "".join(json.dumps({"text": f"text {i}: " + "a river " * (i % 9)}) + "\n" for i in range(60))


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec is untyped
    """A file as s3:// gives it: ranges fetched on demand, and a readline() that takes no limit."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start=start, end=end))


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on a file system that reads like an object store."""
    open_local = MemoryFileSystem._open

    def open_remote(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return open_local(self, path, mode=mode, **options)
        return RemoteFile(self, path, mode, size=self.size(path))

    monkeypatch.setattr(MemoryFileSystem, "_open", open_remote)
    yield "memory://calm-remote"
    fsspec.filesystem("memory").rm("/calm-remote", recursive=True)


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_sources_and_shards_of_an_object_store_are_those_of_a_local_folder(
    remote: str, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / f"texts.{suffix}").write_text(LINES)
    with fsspec.open(f"{remote}/texts.{suffix}", "wb") as file:
        file.write(LINES.encode())
    splits = []
    for place in (remote, str(tmp_path)):
        data = DataConfig(
            sources=(f"{place}/texts.{suffix}",),
            sequence_length=16,
            partitions=3,
            rows_per_group=4,
            rows_per_shard=8,
            validation_fraction=0.3,
            txt_document_bytes=100,
        )
        dataset = prepare_data(data, TokenizerConfig(vocab_size=260), f"{place}/dataset")
        train = TokenDataset(dataset.uri, "train")
        splits.append((dataset.digest, train.rows(np.arange(train.num_sequences)).tolist()))
    assert splits[0] == splits[1]
