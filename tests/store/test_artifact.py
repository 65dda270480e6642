"""Artifacts: complete or refused, checked when read, on any file system."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs

from calm_core.errors import ArtifactError, StorageError
from calm_core.store import storage
from calm_core.store.artifact import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    Artifact,
    ArtifactWriter,
    Manifest,
    digest_of,
    place_beside,
    refer,
)
from calm_core.store.facts import Count, Facts, Seconds
from tests.data.test_faults import small_disk


class KIND(Facts, kind="sample"):
    """Facts of the tests' own."""

    count: Count = 2
    seconds: Seconds = 0.0


class OTHER(Facts, kind="other sample"):
    """Another kind."""


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield f"{tmp_path}/deep/artifact"
        return
    yield "memory://calm-artifact/deep/artifact"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists("/calm-artifact"):
        filesystem.rm("/calm-artifact", recursive=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete artifact in a local folder."""
    write(str(tmp_path / "artifact"))
    return tmp_path / "artifact"


def write(uri: str, content: bytes = b"content", *, steps: int = 1, seconds: float = 1.0) -> Artifact[KIND]:
    with ArtifactWriter(uri, KIND, config={"steps": steps, "sizes": (1, 2)}, parents={"data": "abc"}) as writer:
        writer.write("b/second.bin", content)
        writer.write("a.json", b'{"x": 1}')
        writer.facts = KIND(count=2, seconds=seconds)
    return Artifact(uri, KIND)


def test_what_was_written_is_read(uri: str) -> None:
    artifact = write(uri)
    assert artifact.read("b/second.bin") == artifact.open("b/second.bin").read() == b"content"
    assert artifact.read_json("a.json") == {"x": 1}
    manifest = artifact.manifest
    assert [(entry.path, entry.size) for entry in manifest.files] == [("a.json", 8), ("b/second.bin", 7)]
    assert (manifest.config, manifest.parents) == ({"steps": 1, "sizes": [1, 2]}, {"data": "abc"})
    assert (manifest.results, manifest.timings) == ({"count": 2}, {"seconds": 1.0})
    assert artifact.facts == KIND(count=2, seconds=1.0)
    for entry in manifest.files:
        artifact.check(entry.path)


def test_the_digest_is_of_the_content_and_not_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = write(f"{tmp_path}/a").digest
    monkeypatch.setattr("calm_core.store.artifact.code_version", lambda: "another")
    assert write(f"{tmp_path}/b", seconds=9.0).digest == digest
    assert write(f"{tmp_path}/c", b"other").digest != digest
    assert write(f"{tmp_path}/d", steps=2).digest != digest


def test_a_block_that_fails_leaves_no_manifest(uri: str) -> None:
    with pytest.raises(ZeroDivisionError), ArtifactWriter(uri, KIND, {}, {}) as writer:
        writer.write("a.json", b"{}")
        raise ZeroDivisionError
    with pytest.raises(ArtifactError, match=rf"{uri}: the sample artifact is half-written .*run its stage again"):
        Artifact(uri, KIND)


def test_a_replacement_that_fails_does_not_leave_the_old_manifest(uri: str) -> None:
    """Else the old manifest would vouch for a mixture of old and new files."""
    write(uri)
    with pytest.raises(ZeroDivisionError), ArtifactWriter(uri, KIND, {}, {}, overwrite=True):
        raise ZeroDivisionError
    with pytest.raises(ArtifactError, match=r"half-written|missing"):  # an object store has no empty folders
        Artifact(uri, KIND)


def test_a_replacement_holds_only_the_new_files(uri: str) -> None:
    write(uri)
    with ArtifactWriter(uri, KIND, {}, {}, overwrite=True) as writer:
        writer.write("new.bin", b"new")
        writer.facts = KIND()
    artifact = Artifact(uri, KIND)
    assert [entry.path for entry in artifact.manifest.files] == ["new.bin"]
    with pytest.raises(ArtifactError, match=r"its manifest lists no file a\.json"):
        artifact.read("a.json")


@pytest.mark.parametrize("target", ["memory://calm-copy/artifact", "local"])
def test_a_copied_file_keeps_its_entry_also_across_file_systems(target: str, uri: str, tmp_path: Path) -> None:
    source = write(uri)
    target = f"{tmp_path}/copy" if target == "local" else target
    with ArtifactWriter(target, KIND, {}, {}) as writer:
        writer.copy(source, {"b/second.bin": "c/copied.bin"})
        writer.facts = KIND()
    copied = Artifact(target, KIND)
    assert copied.read("c/copied.bin") == b"content"
    assert copied.entry("c/copied.bin").sha256 == source.entry("b/second.bin").sha256


def test_nothing_there_is_called_missing_and_not_half_written(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"nowhere: the sample artifact is missing, no such folder; .* holds nothing"
    ):
        Artifact(f"{tmp_path}/nowhere", KIND)


def test_a_file_in_place_of_the_folder_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file: is a file; the sample artifact is a folder with a manifest\.json"):
        Artifact(f"{tmp_path}/file", KIND)


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_a_damaged_file_is_refused_by_name(damage: str, folder: Path) -> None:
    path = folder / "b" / "second.bin"
    artifact = Artifact(str(folder), KIND)
    match damage:
        case "flip":
            path.write_bytes(b"cOntent")
        case "cut":
            path.write_bytes(b"conten")
        case "grow":
            path.write_bytes(b"content ")
        case "remove":
            path.unlink()
    for check in (lambda: artifact.read("b/second.bin"), lambda: artifact.check("b/second.bin")):
        with pytest.raises(ArtifactError, match=r"b/second\.bin: file is (damaged|missing)") as caught:
            check()
        assert "\n" not in str(caught.value)
    assert artifact.read("a.json") == b'{"x": 1}'  # the others are still good


def test_all_files_are_checked_and_each_damage_counts(folder: Path) -> None:
    artifact, checked = Artifact(str(folder), KIND), []
    artifact.check_files(on_checked=lambda entry: checked.append(entry.path))
    assert sorted(checked) == ["a.json", "b/second.bin"]
    (folder / "b" / "second.bin").write_bytes(b"cOntent")
    artifact.check_files(["a.json"])
    with pytest.raises(ArtifactError, match=r"b/second\.bin: file is damaged [^(]*\(SHA-256 differs\); [^(]*$"):
        artifact.check_files()
    (folder / "a.json").unlink()
    with pytest.raises(ArtifactError, match=r"a\.json: file is missing; .* \(and 1 more files\)$"):
        artifact.check_files()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema_version": 1}', b'{"schema_version": []}']
)
def test_a_damaged_manifest_is_refused_by_name(content: bytes, folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged manifest") as caught:
        Artifact(str(folder), KIND)
    assert "\n" not in str(caught.value)


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="is a sample artifact, an other sample artifact was expected"):
        Artifact(str(folder), OTHER)


@pytest.mark.parametrize("other_fields", [{}, {"a field of the future": 1}])
def test_another_schema_version_is_refused_as_such_and_not_as_damage(
    other_fields: dict[str, int], folder: Path
) -> None:
    """A folder written by newer code must not be called damaged: the advice would be to delete it."""
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 3} | other_fields))
    with pytest.raises(
        ArtifactError, match=r"manifest\.json: was written by a newer version .*schema 3.* up to 2\); update"
    ):
        Artifact(str(folder), KIND)


def test_an_artifact_of_another_kind_is_not_written_over(tmp_path: Path) -> None:
    """A wrong --output must not cost a trained model."""
    with ArtifactWriter(str(tmp_path), KIND, {}, {}) as writer:
        writer.write("weights", b"weeks of training")
        writer.facts = KIND()
    with (
        pytest.raises(ArtifactError, match="holds an artifact of kind sample, not other sample; name another output"),
        ArtifactWriter(str(tmp_path), OTHER, {}, {}),
    ):
        pass
    assert Artifact(str(tmp_path), KIND).read("weights") == b"weeks of training"


def edit(folder: Path, **parts: Any) -> None:
    """Edit a manifest as somebody does who knows of its checksum."""
    content = json.loads((folder / MANIFEST_NAME).read_text()) | parts
    content["checksum"] = digest_of({name: value for name, value in content.items() if name != "checksum"})
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


OUTSIDE = [
    "../victim",
    "/victim",
    "b/../../victim",
    "x\\..\\victim",
    "victim\0",
    "",
    ".",
    "file:///victim",
    "manifest.json",
]


@pytest.fixture
def victim(folder: Path) -> Path:
    """A file beside the artifact."""
    path = folder.parent / "victim"
    path.write_bytes(b"not yours")
    return path


def entry_of(path: Path, name: str) -> dict[str, Any]:
    data = path.read_bytes()
    return {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("path", [*OUTSIDE, "absolute", "twice"])
def test_a_path_that_leaves_the_folder_is_believed_by_nobody(path: str, folder: Path, victim: Path) -> None:
    """It is neither read, nor copied, nor deleted with the artifact that is replaced."""
    entry = entry_of(victim, str(victim) if path == "absolute" else "a.json" if path == "twice" else path)
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    edit(folder, files=[*files, entry])
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged manifest \(files"):
        Artifact(str(folder), KIND)
    with ArtifactWriter(str(folder), KIND, {}, {}, overwrite=True) as writer:
        writer.facts = KIND()
    assert victim.read_bytes() == b"not yours"
    assert (folder / "a.json").exists()  # nothing vouches for the names in a damaged manifest


@pytest.mark.parametrize("link", ["file", "folder", "manifest"])
def test_a_link_out_of_the_folder_is_followed_by_nobody(link: str, folder: Path, victim: Path) -> None:
    entry = entry_of(victim, "out/victim" if link == "folder" else "out")
    (folder / "out").symlink_to(victim.parent if link == "folder" else victim)
    edit(folder, files=[entry])
    if link == "manifest":
        (folder / MANIFEST_NAME).rename(victim.parent / "elsewhere.json")
        (folder / MANIFEST_NAME).symlink_to(victim.parent / "elsewhere.json")
        with pytest.raises(StorageError, match="is a link that leads out of the folder"):
            Artifact(str(folder), KIND)
        return
    artifact = Artifact(str(folder), KIND)
    for use in (artifact.read, artifact.check, lambda path: artifact.check_files([path])):
        with pytest.raises(StorageError, match="is a link that leads out of the folder"):
            use(entry["path"])
    with (
        pytest.raises(StorageError, match="is a link that leads out of the folder"),
        ArtifactWriter(str(victim.parent / "copy"), KIND, {}, {}) as writer,
    ):
        writer.copy(artifact, {entry["path"]: "copied"})
    again = ArtifactWriter(str(folder), KIND, artifact.manifest.config, artifact.manifest.parents)
    with pytest.raises(StorageError, match="leads out"), again:
        pass
    with (
        pytest.raises(StorageError, match="leads out"),
        ArtifactWriter(str(victim.parent / "copy"), KIND, {}, {}) as writer,
    ):
        (victim.parent / "copy").mkdir(exist_ok=True)
        (victim.parent / "copy" / "deep").symlink_to(folder)
        writer.write("deep/file", b"")
    assert victim.read_bytes() == b"not yours"
    assert (folder / MANIFEST_NAME).exists()


@pytest.mark.parametrize("other", ["folder", "pipe", "huge"])
def test_what_is_no_such_file_is_refused_before_it_is_read(other: str, folder: Path) -> None:
    path = folder / "a.json"
    path.unlink()
    match other:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "huge":  # ten TB that take no room
            with open(path, "wb") as file:
                file.truncate(10**13)
    artifact = Artifact(str(folder), KIND)
    for use in (artifact.read, artifact.check):
        with pytest.raises((ArtifactError, StorageError), match=r"a\.json"):
            use("a.json")


@pytest.mark.parametrize("part", ["code_version", "parents", "timings", "origins", "files", "config", "checksum"])
def test_a_value_that_changed_on_its_own_is_damage(part: str, folder: Path) -> None:
    """Of those that take no part in the digest, too, and where a value is left out that may be missing."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    for changed in ({**content, part: type(content[part])()}, {k: v for k, v in content.items() if k != part}):
        if changed == content:
            continue
        (folder / MANIFEST_NAME).write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match=r"damaged manifest .*; delete the folder and run its stage again"):
            Artifact(str(folder), KIND)


def test_each_bit_of_a_manifest_counts(folder: Path) -> None:
    good = (folder / MANIFEST_NAME).read_bytes()
    meaning = json.loads(good)
    for place in range(0, len(good) * 8, 13):  # all places of a bit in a byte, all over the file
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        (folder / MANIFEST_NAME).write_bytes(bad)
        with suppress(ArtifactError):
            Artifact(str(folder), KIND)
            assert json.loads(bad) == meaning  # between the values


def test_a_manifest_of_the_schema_before_checksums_is_read(folder: Path) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_text())
    del content["checksum"]
    (folder / MANIFEST_NAME).write_text(json.dumps(content | {"schema_version": 1}))
    artifact = Artifact(str(folder), KIND)
    digested = {"kind", "schema_version", "config", "parents", "results", "files"}
    assert artifact.digest == digest_of({k: v for k, v in (content | {"schema_version": 1}).items() if k in digested})
    artifact.check_files()
    (folder / MANIFEST_NAME).write_text(json.dumps(content | {"schema_version": 1, "checksum": "0" * 64}))
    with pytest.raises(ArtifactError, match="its checksum differs"):
        Artifact(str(folder), KIND)


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "app", "short_name": "a web page\'s manifest"}',
        "[" * 100_000,
        '{"kind": "sample", "schema_version": ' + "9" * 5000 + "}",
        '{"kind": "\\u001b[2J", "schema_version": 1}',
        '{"kind": "sample", "schema_version": true}',
        " " * 200_001,
    ],
    ids=["another program's", "nested", "a long number", "control characters", "a switch", "enormous"],
)
def test_what_is_no_manifest_of_ours_is_not_to_be_deleted(
    content: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calm_core.store.artifact._LARGEST_MANIFEST", 200_000)
    (folder / MANIFEST_NAME).write_text(content)
    with pytest.raises(
        ArtifactError, match=r"damaged manifest .*; name another folder, or delete this one if"
    ) as caught:
        Artifact(str(folder), KIND)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    with pytest.raises(ArtifactError, match="name another output"), ArtifactWriter(str(folder), OTHER, {}, {}):
        pass
    assert (folder / MANIFEST_NAME).read_text() == content


def test_a_damaged_artifact_of_the_same_kind_is_replaced_when_asked(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ArtifactError, match="damaged manifest"):
        ArtifactWriter(str(folder), KIND, {}, {}).check()
    with ArtifactWriter(str(folder), KIND, {}, {}, overwrite=True) as writer:
        writer.write("a.json", b"new")
        writer.facts = KIND()
    assert Artifact(str(folder), KIND).read("a.json") == b"new"


@pytest.mark.parametrize(
    ("entry", "named"),
    [({"size": -1}, "size"), ({"size": 2**60}, "size"), ({"sha256": "../../x"}, "sha256"), ({"size": "8"}, "size")],
)
def test_an_entry_is_typed(entry: dict[str, Any], named: str, folder: Path) -> None:
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    edit(folder, files=[files[0] | entry, files[1]])
    with pytest.raises(ArtifactError, match=rf"damaged manifest \(files\.0\.{named}: "):
        Artifact(str(folder), KIND)


def test_more_files_than_can_be_read_again_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calm_core.store.artifact._LARGEST_MANIFEST", 1000)
    with (
        pytest.raises(ArtifactError, match="its 9 files are more than a manifest may list; make fewer, larger ones"),
        ArtifactWriter(str(tmp_path), KIND, {}, {}) as writer,
    ):
        for i in range(9):
            writer.write(f"{i}.bin", b"")
        writer.facts = KIND()
    assert not (tmp_path / MANIFEST_NAME).exists()


# Where an artifact may be written: nothing that lies there is lost unasked.


@pytest.fixture
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place on a disk, in memory, or on an S3 server."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_place')}/deep/artifact"
    return f"{tmp_path}/deep/artifact" if request.param == "local" else f"memory://{tmp_path.name}/deep/artifact"


on_any_storage = pytest.mark.parametrize("anywhere", ["local", "memory", "s3"], indirect=True)


def lying(uri: str) -> dict[str, bytes]:
    """Everything below the folder that an artifact's folder lies in."""
    above = uri.rpartition("/deep/")[0]
    return {file: storage.read(file) for file in storage.files_below(above)} if storage.exists(above) else {}


def writer_of(uri: str, *, steps: int = 1, overwrite: bool = False) -> ArtifactWriter[KIND]:
    """A writer of what `write` writes."""
    return ArtifactWriter(uri, KIND, {"steps": steps, "sizes": (1, 2)}, {"data": "abc"}, overwrite=overwrite)


@on_any_storage
def test_a_check_leaves_nothing_behind(anywhere: str) -> None:
    writer_of(anywhere).check()
    assert lying(anywhere) == {}
    write(anywhere)
    before = lying(anywhere)
    writer_of(anywhere).check()
    assert lying(anywhere) == before


@on_any_storage
def test_the_same_artifact_is_written_again_unasked(anywhere: str) -> None:
    write(anywhere)
    write(anywhere, seconds=9.0)
    assert Artifact(anywhere, KIND).facts.seconds == 9.0
    assert len(lying(anywhere)) == 3


@on_any_storage
@pytest.mark.parametrize("different", ["config", "parents", "more parents"])
def test_another_artifact_of_the_kind_is_replaced_only_when_asked(different: str, anywhere: str) -> None:
    write(anywhere)
    before = lying(anywhere)
    config = {"steps": 2 if different == "config" else 1, "sizes": [1, 2]}
    parents = {"data": "xyz" if different == "parents" else "abc"} | ({"more": "d"} if "more" in different else {})
    message = rf"{anywhere}: holds another sample, of other settings or inputs; .* replace it with overwrite=True$"
    with pytest.raises(ArtifactError, match=message):
        ArtifactWriter(anywhere, KIND, config, parents).check()
    with pytest.raises(ArtifactError, match=message), ArtifactWriter(anywhere, KIND, config, parents):
        pass
    assert lying(anywhere) == before
    with ArtifactWriter(anywhere, KIND, config, parents, overwrite=True) as writer:
        writer.write("new", b"new")
        writer.facts = KIND()
    assert Artifact(anywhere, KIND).manifest.parents == parents
    assert len(lying(anywhere)) == 2


def test_before_all_parents_are_known_those_that_are_decide(uri: str) -> None:
    write(uri)
    writer = ArtifactWriter(uri, KIND, {"steps": 1, "sizes": [1, 2]}, {})
    writer.check()
    with pytest.raises(ArtifactError, match="holds another sample"):
        writer.check(lambda made: made.results["count"] == 3)
    with pytest.raises(ArtifactError, match="holds another sample"), writer:
        pass


@on_any_storage
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "b/notes.txt", ".hidden"])
def test_a_folder_with_files_of_others_is_not_written_to(name: str, overwrite: bool, anywhere: str) -> None:
    storage.write(f"{anywhere}/{name}", b"mine")
    before = lying(anywhere)
    writer = writer_of(anywhere, overwrite=overwrite)
    with pytest.raises(ArtifactError, match=r"holds other files \((notes\.txt|b|\.hidden)\); name another output"):
        writer.check()
    with pytest.raises(ArtifactError, match="holds other files"), writer:
        pass
    assert lying(anywhere) == before


@on_any_storage
@pytest.mark.parametrize("name", ["notes.txt", "b/notes.txt"])
def test_a_file_beside_the_artifact_that_is_replaced_stays(name: str, anywhere: str) -> None:
    write(anywhere)
    storage.write(f"{anywhere}/{name}", b"mine")
    before = lying(anywhere)
    with pytest.raises(ArtifactError, match=rf"also holds {name}, not listed in its manifest\.json; move what is"):
        writer_of(anywhere, steps=2, overwrite=True).check()
    assert lying(anywhere) == before
    write(anywhere)  # the same has no other names than before
    assert storage.read(f"{anywhere}/{name}") == b"mine"


@on_any_storage
@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_what_a_crash_has_left_is_replaced_unasked(replaced: bool, anywhere: str) -> None:
    if replaced:
        write(anywhere)
    with pytest.raises(ZeroDivisionError), writer_of(anywhere, steps=2, overwrite=True) as writer:
        writer.write("a.json", b"half")
        raise ZeroDivisionError
    with pytest.raises(ArtifactError, match="holds an artifact of kind sample, not other sample; name another"):
        ArtifactWriter(anywhere, OTHER, {}, {}, overwrite=True).check()
    writer_of(anywhere).check()
    write(anywhere)
    assert len(lying(anywhere)) == 3
    Artifact(anywhere, KIND).check_files()


@pytest.mark.parametrize("manifest", [b"", b"\0" * 800, None], ids=["empty", "zeros", "none"])
def test_what_a_machine_without_power_has_left_is_replaced_unasked(manifest: bytes | None, folder: Path) -> None:
    (folder / UNFINISHED_NAME).write_bytes(b"")
    (folder / MANIFEST_NAME).unlink()
    (folder / ".a.json.123.calm.partial").write_bytes(b"half")
    if manifest is not None:
        (folder / MANIFEST_NAME).write_bytes(manifest)
    write(str(folder))
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.json", MANIFEST_NAME, "second.bin"]


def test_an_empty_manifest_with_nothing_beside_it_is_replaced_unasked(tmp_path: Path) -> None:
    """As a machine without power may leave one."""
    for content in (b"", b"\0" * 800):
        (tmp_path / MANIFEST_NAME).write_bytes(content)
        write(str(tmp_path))
        (tmp_path / "b" / "second.bin").unlink()
        (tmp_path / "a.json").unlink()


def test_a_partial_file_of_ours_is_no_file_of_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".{UNFINISHED_NAME}.123.calm.partial").write_bytes(b"")
    write(f"{tmp_path}/out")


def test_a_writer_that_finishes_while_its_place_is_looked_at_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that fail together each say how; so may a pod and the one that takes its place."""
    (folder / UNFINISHED_NAME).write_bytes(b"sample")
    names_in = storage.names_in

    def listed(uri: str) -> list[str]:
        names = names_in(uri)
        (folder / UNFINISHED_NAME).unlink(missing_ok=True)
        return names

    monkeypatch.setattr(storage, "names_in", listed)
    write(str(folder))


@on_any_storage
def test_no_artifact_is_written_into_another_one(anywhere: str) -> None:
    write(anywhere)
    before = lying(anywhere)
    with pytest.raises(
        ArtifactError, match=rf"lies inside the artifact .*{anywhere.rpartition('://')[2]}; name another"
    ):
        writer_of(f"{anywhere}/b/inner").check()
    assert lying(anywhere) == before


def test_a_link_into_an_artifact_leads_inside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder / "b")
    with pytest.raises(ArtifactError, match="lies inside the artifact"):
        writer_of(f"{tmp_path}/link/out").check()


@pytest.mark.parametrize(
    "place", ["file", "file/a/b", "/dev/null", "/dev/null/a", "gone", "gone/a", "n" * 300, "/proc/a"]
)
def test_what_can_be_no_folder_is_refused_before_the_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("gone").symlink_to("nowhere")
    with pytest.raises((ArtifactError, StorageError), match="; name another") as caught:
        writer_of(place).check()
    assert "Errno" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("read-only", r", .*/disk is on a disk that can only be read; name another place"),
        ("full", ", the disk is full"),
    ],
)
def test_a_disk_that_takes_nothing_is_refused_before_the_work(state: str, says: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 4096):
        if state == "full":
            (disk / "file").write_bytes(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match=rf"disk/out: cannot be written{says}"):
            writer_of(f"{disk}/out").check()


def test_a_store_that_denies_access_is_refused_before_the_work(s3_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{s3_place}/artifact")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=rf"{s3_place}/artifact.*denies access"):
        writer_of(f"{s3_place}/artifact").check()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("scheme", ["", "memory://", "s3://"])
def test_a_place_knows_what_it_lies_in(scheme: str, tmp_path: Path) -> None:
    folder = f"{scheme}bucket/x" if scheme else f"{tmp_path}/x"
    for inner in (folder, f"{folder}/", f"{folder}/a", f"{folder}/a/b"):
        assert storage.is_inside(inner, folder)
    for other in (f"{folder}-2", f"{folder}-2/a", folder.rpartition("/")[0]):
        assert not storage.is_inside(other, folder)
    if not scheme:
        assert storage.is_inside(f"{tmp_path}/y/../x/a", folder)
        assert storage.is_inside(folder, "/")
        assert not storage.is_inside(folder, "s3://bucket/x")


@on_any_storage
def test_a_manifest_stands_for_the_artifact_beside_it(anywhere: str) -> None:
    written = write(place_beside(anywhere))
    refer(anywhere)
    artifact = Artifact(anywhere, KIND)
    assert (artifact.uri, artifact.digest, artifact.facts) == (written.uri, written.digest, written.facts)
    assert artifact.read("b/second.bin") == b"content"
    artifact.check_files()
    assert [uri.rpartition("/")[2] for uri in storage.files_below(anywhere)] == [MANIFEST_NAME]
    storage.remove([storage.join(place_beside(anywhere), "a.json")])
    with pytest.raises(ArtifactError, match=re.escape("/.data/artifact/a.json: file is missing")):
        artifact.check_files()


def test_both_may_move_together(tmp_path: Path) -> None:
    task = tmp_path / "task"
    write(place_beside(f"{task}/artifact"))
    refer(f"{task}/artifact")
    (tmp_path / "elsewhere").mkdir()
    task.rename(tmp_path / "elsewhere" / "task")
    assert Artifact(f"{tmp_path}/elsewhere/task/artifact", KIND).read("b/second.bin") == b"content"


def test_a_manifest_stands_for_nothing_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the artifact is missing, no such folder"):
        refer(f"{tmp_path}/task/artifact")
    assert not (tmp_path / "task" / "artifact").exists()


@pytest.mark.parametrize(
    "place", ["..", ".data", ".data/", "/etc", ".data/../x", "x", "other/x", ".data/a/b", "s3://a/b"]
)
def test_a_manifest_stands_for_nothing_elsewhere(place: str, folder: Path) -> None:
    manifest = Manifest.read(str(folder))
    data = json.loads((folder / MANIFEST_NAME).read_text()) | {"files_in": place}
    data["checksum"] = manifest.model_copy(update={"files_in": place}).own_checksum
    (folder / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=re.escape("damaged manifest (files_in: is no folder in .data)")):
        Artifact(str(folder), KIND)


def test_a_link_beside_leads_nowhere_else(folder: Path, tmp_path: Path) -> None:
    write(f"{tmp_path}/secret/artifact")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / ".data").symlink_to(tmp_path / "secret")
    data = json.loads((folder / MANIFEST_NAME).read_text()) | {"files_in": ".data/artifact"}
    data["checksum"] = Manifest.read(str(folder)).model_copy(update={"files_in": ".data/artifact"}).own_checksum
    (tmp_path / "task" / "artifact").mkdir()
    (tmp_path / "task" / "artifact" / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(StorageError, match="is a link that leads out of the folder"):
        Artifact(f"{tmp_path}/task/artifact", KIND)
