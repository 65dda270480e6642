"""The code's version takes part in every cache key, so it has to cover the whole library."""

import shutil
from pathlib import Path

import pytest

import calm_core
from calm_core.store import code_version as module

ROOT = Path(calm_core.__file__).parent
FILES = ["config/heads.py", "store/code_version.py", "models/calm.py", "data/preparing/packing.py", "errors.py"]


def version_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(calm_core, "__file__", str(root / "__init__.py"))
    monkeypatch.delenv(module.CODE_VERSION_VARIABLE, raising=False)
    return module.code_version.__wrapped__()


@pytest.mark.parametrize("changed", FILES)
def test_a_change_in_any_room_is_another_version(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = version_of(ROOT, monkeypatch)
    copy = shutil.copytree(ROOT, tmp_path / "calm_core", ignore=shutil.ignore_patterns("__pycache__"))
    assert version_of(copy, monkeypatch) == before
    (copy / changed).write_text((copy / changed).read_text() + "# changed\n")
    assert version_of(copy, monkeypatch) != before


def test_an_image_says_its_own_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.CODE_VERSION_VARIABLE, "image@sha256:1")
    assert module.code_version.__wrapped__() == "image@sha256:1"
