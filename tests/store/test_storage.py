"""Places in storage that something from outside names."""

from pathlib import Path

import pytest

from calm_core.errors import StorageError
from calm_core.store import storage


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
