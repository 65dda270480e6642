"""Places in storage that something from outside names."""

import gc
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from calm_core.errors import StorageError
from calm_core.store import storage

TraceFunction = Callable[[FrameType, str, Any], Any]


@pytest.mark.parametrize(
    "path",
    ["", "/etc/x", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/", "a\\b", "a\0b", "a\nb", "C:/x", "s3://b/x"],
)
def test_a_path_from_outside_stays_in_its_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no plain path inside the folder"):
        storage.child(str(tmp_path), path)
    with pytest.raises(StorageError, match="no plain path inside the folder"):
        storage.child("memory://folder", path)


def test_a_link_must_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "file").write_text("mine")
    (folder / "in").symlink_to(folder / "file")
    for path in ("out", "up/secret"):
        with pytest.raises(StorageError, match="is a link that leads out of the folder"):
            storage.child(str(folder), path)
    assert storage.read(storage.child(str(folder), "in")) == b"mine"
    (tmp_path / "alias").symlink_to(folder)  # the folder itself may be reached by a link
    assert storage.read(storage.child(str(tmp_path / "alias"), "file")) == b"mine"


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe is neither a file nor a folder"):
        storage.child(str(tmp_path), "pipe")


ODD_NAMES = [
    "notes::v1", "simplecache::memory:", "a?b", "%41", "100%", "it's", 'a"b', " ", "a b ", "br[x]", "*", "[", "{$x}",
    "😀", "\u202fpm", "file:x", "s3:bucket", "~x", "#1", "a\\b", "...",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("form", ["{}", "./{}", "sub/../{}", "file://{folder}/{}", "{folder}/{}"])
def test_a_path_is_taken_as_it_stands(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes").write_text("of the user")
    uri = form.format(name, folder=tmp_path)
    storage.write(uri, b"1")
    assert (tmp_path / name).read_bytes() == storage.read(uri) == storage.read(storage.absolute(uri)) == b"1"
    assert storage.glob(uri) == [storage.absolute(uri)]
    storage.remove([uri])
    storage.write(storage.join(uri, "x"), b"2")
    assert storage.names_in(uri) == ["x"]
    storage.remove_folder(uri)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "sub"]


def test_the_home_of_the_user_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "br[x]").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "br[x]"))
    storage.write("~/file", b"1")
    assert storage.glob("~/f*") == [f"file://{tmp_path}/br[x]/file"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "is empty"),
        ("a\0b", "has a control character"),
        ("a\x1b[2J", "has a control character"),
        ("s3://bucket/\n", "has a control character"),
        ("\udcff", "is no UTF-8"),
        ("s3://", "names no bucket or host"),
        ("s3:///key", "names no bucket or host"),
        ("https://", "names no bucket or host"),
        ("file://relative", "is no absolute path"),
        ("nope://x", "cannot be used, nothing is known of nope://"),
        ("zip://x", "cannot be used"),
    ],
)
def test_what_is_no_place_is_one_line(uri: str, reason: str) -> None:
    for use in (storage.filesystem_of, storage.exists, storage.read, storage.glob, storage.absolute):
        with pytest.raises(StorageError, match=reason) as caught:
            use(uri)
        assert str(caught.value).isprintable()


def test_the_name_of_s3_in_kubeflow_needs_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, a bucket of that name on Amazon's would be asked."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match=r"minio://mlpipeline/v2: lies at an endpoint .* set AWS_ENDPOINT_URL"):
        storage.filesystem_of("minio://mlpipeline/v2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://seaweedfs.kubeflow:9000")
    assert storage.absolute("minio://mlpipeline/v2/artifacts") == "s3://mlpipeline/v2/artifacts"


def test_there_is_no_chain_of_urls() -> None:
    """fsspec would read it as a cache in front of a bucket, with files of the first name."""
    assert storage.is_local("simplecache::s3://bucket/x")
    assert storage.filesystem_of("s3://bucket/a::s3://other/b")[1] == "bucket/a::s3://other/b"


def test_nothing_is_appended_to_an_empty_uri() -> None:
    """It would lie in the root folder."""
    with pytest.raises(StorageError, match="is empty; name a file or folder"):
        storage.join("", "manifest.json")


@pytest.mark.parametrize(
    ("uri", "joined"),
    [("a/", "a/x/y"), ("/", "/x/y"), ("file:///", "file:///x/y"), ("s3://b/", "s3://b/x/y"), ("a::b", "a::b/x/y")],
)
def test_segments_are_appended_to_any_uri(uri: str, joined: str) -> None:
    assert storage.join(uri, "x/", "/y") == joined


def test_the_place_beside_a_folder_is_never_another_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert storage.beside("out/", ".parts") == "out.parts"
    assert storage.beside("s3://bucket/out/", ".parts") == "s3://bucket/out.parts"
    for here in (".", "./", "../here/."):
        assert storage.beside(here, ".parts") == f"file://{tmp_path}/here.parts"
    for root in ("s3://bucket", "s3://bucket/", "/", "file:///", "memory:///"):
        with pytest.raises(StorageError, match="is the root of its storage"):
            storage.beside(root, ".parts")


def test_only_the_users_own_words_are_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "br[x]"
    (here / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "[ab].txt", "deep/c.txt"):
        (here / name).write_text(name)
    monkeypatch.chdir(here)

    def names(pattern: str) -> list[str]:
        return [uri.removeprefix(f"file://{here}/") for uri in storage.glob(pattern)]

    assert names("[ab].txt") == ["[ab].txt"]  # a name that is there is meant
    assert names("[ab].tx?") == names("./[ab].tx?") == ["a.txt", "b.txt"]
    assert names("**/*.txt") == ["[ab].txt", "a.txt", "b.txt", "deep/c.txt"]
    assert [uri.rpartition("/")[2] for uri in storage.glob("../br[[]x]/?.txt")] == ["a.txt", "b.txt"]
    assert names("none*") == []


def test_of_two_who_write_a_file_at_once_the_last_one_wins_and_it_is_whole(tmp_path: Path) -> None:
    """Their processes may have the same number, in containers that share a disk."""
    uri = str(tmp_path / "file")
    with storage.create(uri) as first:
        first.write(b"first, and longer")
        storage.write(uri, b"second")
        assert storage.read(uri) == b"second"
    assert storage.read(uri) == b"first, and longer"
    assert storage.names_in(str(tmp_path)) == ["file"]


@pytest.mark.parametrize("operation", ["create", "copy"])
def test_a_request_to_stop_leaves_no_part_of_a_file_wherever_it_comes(operation: str, tmp_path: Path) -> None:
    """At each line of the module in turn, until one comes too late."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"1")
    does: Callable[[], None] = {
        "create": lambda: storage.write(str(target), b"1"),
        "copy": lambda: storage.copy(str(source), str(target)),
    }[operation]
    for nth in itertools.count(1):
        lines = itertools.count(1)

        def stop(
            frame: FrameType, event: str, argument: Any, lines: Iterator[int] = lines, nth: int = nth
        ) -> TraceFunction | None:
            if frame.f_code.co_filename != storage.__file__:
                return None
            if event == "line" and next(lines) == nth:
                raise KeyboardInterrupt
            return stop

        sys.settrace(stop)
        try:
            does()
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        gc.collect()  # generators that were left in the middle
        assert set(storage.names_in(str(tmp_path))) <= {"source", "target"}, nth
        target.unlink(missing_ok=True)
    assert nth > 10
    assert target.read_bytes() == b"1"


def test_only_leftovers_of_our_own_writers_are_removed(tmp_path: Path) -> None:
    others = [".x.partial", ".download.123.partial", "x.calm.partial", ".x.abc.calm.partial", "deep/.y.partial"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of another program")
    (tmp_path / "deep" / ".z.1.calm.partial").symlink_to(tmp_path / ".x.partial")
    with storage.create(f"{tmp_path}/deep/ours") as file:
        file.write(b"1")
        (ours,) = (path.name for path in (tmp_path / "deep").glob(".ours.*"))
        assert ours.startswith(f".ours.{os.getpid()}")
        shutil.copytree(tmp_path, tmp_path.parent / "killed", symlinks=True)
    storage.remove_partial(str(tmp_path.parent / "killed"))
    left = {path.relative_to(tmp_path.parent / "killed").as_posix() for path in (tmp_path.parent / "killed").rglob("*")}
    assert left == {*others, "deep", "deep/.z.1.calm.partial"}


def test_an_empty_folder_of_an_object_store_does_not_hold_itself(s3_place: str) -> None:
    """A console makes an empty object with a slash at its end for one."""
    filesystem, path = storage.filesystem_of(s3_place)
    filesystem.call_s3("put_object", Bucket=path.partition("/")[0], Key=f"{path.partition('/')[2]}/", Body=b"")
    assert storage.kinds_in(s3_place) == {}
    assert storage.names_in(s3_place) == []
