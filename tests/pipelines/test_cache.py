"""The local cache: what it answers is whole, and a key is of content."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from kfp.local import cache, config

from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DuplicatesFacts
from pipelines.local.cache import CheckedCache, use_checked_cache


def made(uri: str, duplicates: int = 1) -> dsl.Dataset:
    """An artifact of two files, as a task hands it on."""
    with ArtifactWriter(uri, DuplicatesFacts, {"seed": 1}, {}) as writer:
        writer.facts = DuplicatesFacts(duplicates=duplicates, near_duplicates=0)
        writer.write("dropped/00000.parquet", b"first" * 100)
        writer.write("dropped/00001.parquet", b"second" * 100)
    return dsl.Dataset("duplicates", uri, {"digest": Artifact(uri, DuplicatesFacts).digest})


@pytest.fixture
def task_cache(tmp_path: Path) -> CheckedCache:
    """A cache with one task, "key", that has made two artifacts, metrics and a number."""
    checked = CheckedCache(str(tmp_path / "cache"))
    (tmp_path / "metrics").write_text("{}")
    outputs = {
        "duplicates": made(f"{tmp_path}/a"),
        "scans": [made(f"{tmp_path}/b")],
        "metrics": dsl.Metrics("metrics", f"{tmp_path}/metrics"),
        "number": 3.0,
    }
    checked.put("key", outputs)
    return checked


def test_whole_outputs_are_answered(task_cache: CheckedCache, tmp_path: Path) -> None:
    outputs = task_cache.get("key")
    assert outputs is not None
    assert outputs["duplicates"].uri == f"{tmp_path}/a" and outputs["scans"][0].uri == f"{tmp_path}/b"
    assert outputs["number"] == 3.0
    assert task_cache.get("another key") is None


def test_a_task_without_outputs_is_not_answered(task_cache: CheckedCache) -> None:
    """Earlier versions kept tasks that had been ended with the run as ones that had succeeded."""
    task_cache.put("ended", {})
    assert task_cache.get("ended") is None


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place < 0 else place] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a byte of a file": lambda folder: flip(folder / "dropped/00001.parquet"),
    "a file is cut": lambda folder: (folder / "dropped/00000.parquet").write_bytes(b"first"),
    "a file is gone": lambda folder: (folder / "dropped/00000.parquet").unlink(),
    "a file is a folder": lambda folder: shutil.move(folder / "dropped", folder / "x/dropped/00000.parquet"),
    "the manifest is gone": lambda folder: (folder / "manifest.json").unlink(),
    "the manifest is empty": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "the manifest is no text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
    "the manifest says another number": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"duplicates": 1', '"duplicates": 2')
    ),
    "another artifact lies there": lambda folder: made(str(folder), duplicates=7),
    "all is gone": shutil.rmtree,
}


@pytest.mark.parametrize("folder", ["a", "b"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_task_whose_outputs_are_not_what_it_has_made_is_forgotten(
    damage: Callable[[Path], Any], folder: str, task_cache: CheckedCache, tmp_path: Path
) -> None:
    damage(tmp_path / folder)
    assert task_cache.get("key") is None


def test_a_damaged_entry_is_no_answer_or_the_right_one(task_cache: CheckedCache, tmp_path: Path) -> None:
    """Each byte in turn, then cuts; what it says of its artifacts for display is not looked at.

    A byte of a place may lead to a twin (an earlier session's folder has the same artifact): right by its content.
    """
    entry = tmp_path / "cache" / "key.json"
    whole, expected = entry.read_bytes(), task_cache.get("key")
    assert expected is not None
    artifacts, refused = [expected["duplicates"], *expected["scans"]], 0
    for place in range(len(whole)):
        flip(entry, place)
        found = task_cache.get("key")
        if found is not None:
            assert found["number"] == expected["number"]
            for one, same in zip([found["duplicates"], *found["scans"]], artifacts, strict=True):
                assert one.metadata["digest"] == same.metadata["digest"] == Artifact.of_any_kind(one.uri).digest
        refused += found is None
        entry.write_bytes(whole)
    assert refused > len(whole) // 2
    for content in (b"", whole[:-1], b"[]", b"3", b"null", b"\xff", b'{"a": {"__kfp_artifact__": true, "uri": 3}}'):
        entry.write_bytes(content)
        assert task_cache.get("key") is None


def key_of(arguments: dict[str, Any], home: Path) -> str:
    return CheckedCache(str(home / "cache")).compute_key(
        component_name="scan",
        image="image",
        full_command=["python3"],
        arguments=arguments,
    )


def test_an_input_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    """So what stands behind a repaired task is not repeated."""
    one, same = made(f"{tmp_path}/one"), made(f"{tmp_path}/same")
    other = made(f"{tmp_path}/other", duplicates=2)
    scans: list[dict[str, Any]] = [{"scans": [one, same], "data": {"x": 1}}, {"scans": [same, one], "data": {"x": 1}}]
    assert key_of(scans[0], tmp_path) == key_of(scans[1], tmp_path)
    assert key_of({"dataset": one, "seed": 1}, tmp_path) == key_of({"dataset": same, "seed": 1}, tmp_path)
    different: list[dict[str, Any]] = [
        {"dataset": one, "seed": 1},
        {"dataset": other, "seed": 1},
        {"dataset": one, "seed": 2},
        {"dataset": [one], "seed": 1},
        {"model": one, "seed": 1},
        {"dataset": one.metadata["digest"], "seed": 1},
    ]
    assert len({key_of(arguments, tmp_path) for arguments in different}) == len(different)


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_it_follows_a_home_that_was_moved_or_copied(how: Callable[[str, str], Any], tmp_path: Path) -> None:
    """The new name begins like the old one."""
    old, new = tmp_path / "a", tmp_path / "a b"
    arguments = {"root": f"{old}/checkpoints", "data": {"sources": [f"{old}/corpus.jsonl", "texts"]}}
    key = key_of(arguments, old)
    (old / "metrics").write_text("{}")
    outputs = {"dataset": made(f"{old}/d"), "metrics": dsl.Metrics("metrics", f"{old}/metrics"), "said": "a"}
    CheckedCache(str(old / "cache")).put(key, outputs)
    how(str(old), str(new))
    moved = {"root": f"{new}/checkpoints", "data": {"sources": [f"{new}/corpus.jsonl", "texts"]}}
    assert key_of(moved, new) == key
    for _ in range(2):  # the second one finds all in its place
        found = CheckedCache(str(new / "cache")).get(key)
        assert found is not None
        assert (found["dataset"].uri, found["metrics"].uri) == (f"{new}/d", f"{new}/metrics")
    assert key_of(arguments | {"root": "elsewhere"}, new) != key


def test_kubeflows_local_runner_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LocalCache", cache.LocalCache)  # restored after the test
    monkeypatch.setattr(config.LocalExecutionConfig, "instance", None)
    use_checked_cache()
    from kfp import local

    workspace = str(tmp_path / "workspace")
    local.init(local.SubprocessRunner(use_venv=False), str(tmp_path), workspace, enable_caching=True)
    assert isinstance(cache.get_local_cache(), CheckedCache)
    cache.reset_local_cache_singleton()


def test_many_damages_at_random_are_never_believed(tmp_path: Path) -> None:
    """Any byte of any file of an artifact; what is of one run alone (times, places, code) does not matter."""
    folder = tmp_path / "a"
    checked = CheckedCache(str(tmp_path / "cache"))
    checked.put("key", {"duplicates": made(str(folder))})
    chance = random.Random(0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for _ in range(300):
        file = chance.choice(files)
        whole = file.read_bytes()
        flip(file, chance.randrange(len(whole)))
        if checked.get("key") is not None:
            manifest = json.loads(file.read_bytes())
            assert file.name == "manifest.json"
            before = json.loads(whole)
            assert {name for name in before if manifest.get(name) != before[name]} <= {"code_version", "timings"}
        file.write_bytes(whole)
    assert checked.get("key") is not None
