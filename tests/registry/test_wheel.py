"""The wheel that a model carries is the one that would be published, whatever way the library is installed in."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from email.policy import compat32
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from calm_core.registry import wheel
from calm_core.registry.wheel import needed_packages, write_wheel

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Our wheel, and the requirement of it."""
    folder = tmp_path_factory.mktemp("ours")
    requirement = write_wheel(folder)
    (path,) = folder.iterdir()
    return path, requirement


def built(folder: Path) -> Path:
    """The wheel that setuptools builds; from a copy, since a build leaves folders behind."""
    source = folder / "source"
    for name in ("calm_core", "calm_cli", "components", "pipelines"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, f"--wheel-dir={folder}", str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def contents(path: Path) -> dict[str, bytes]:
    """The files of a wheel; the folder that describes it is called dist-info."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {
            f"dist-info{name.partition('.dist-info')[2]}" if ".dist-info" in name else name: archive.read(name)
            for name in names
        }


def test_it_holds_what_setuptools_would_pack(ours: tuple[Path, str], tmp_path: Path) -> None:
    made, theirs = contents(ours[0]), contents(built(tmp_path))
    assert made.keys() == theirs.keys()
    assert [name for name in made if not name.startswith("dist-info") and made[name] != theirs[name]] == []
    about = BytesParser(policy=compat32).parsebytes(made["dist-info/METADATA"])
    assert f"{about['Name']}=={about['Version']}" == ours[1]
    assert about.get_all("Requires-Dist") == requires("calm-pipelines")


def test_the_same_code_gives_the_same_bytes_and_other_code_another_version(
    ours: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_wheel(tmp_path / "again") == ours[1]
    assert (tmp_path / "again" / ours[0].name).read_bytes() == ours[0].read_bytes()
    code = wheel._code
    monkeypatch.setattr(wheel, "_code", lambda installed: [*code(installed), ("calm_core/new.py", b"")])
    assert write_wheel(tmp_path / "other") != ours[1]


def test_the_remains_of_a_build_are_not_what_is_installed(
    ours: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds leave an egg-info beside the sources, where Python looks first if it starts there."""
    (tmp_path / "calm_pipelines.egg-info").mkdir()
    (tmp_path / "calm_pipelines.egg-info" / "PKG-INFO").write_text("Name: calm-pipelines\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version("calm-pipelines") == "0.0.1"
    assert write_wheel(tmp_path / "wheel") == ours[1]


def test_from_an_archive_no_wheel_without_code_is_made(ours: tuple[Path, str], tmp_path: Path) -> None:
    """Python runs a wheel that is not installed, too, but has no folder of it."""
    script = "import sys, pathlib, calm_core.registry.wheel as wheel; wheel.write_wheel(pathlib.Path(sys.argv[1]))"
    environment = {"PYTHONPATH": str(ours[0]), "PATH": ""}
    command = [sys.executable, "-c", script, str(tmp_path / "made")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "CalmError: calm-pipelines: its files lie in no folder" in done.stderr
    assert not (tmp_path / "made").exists()


def test_its_own_wheel_makes_it_again(ours: tuple[Path, str], tmp_path: Path) -> None:
    """What is installed from a model registers models with the same wheel."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        f"--target={tmp_path / 'site'}",
    ]
    subprocess.run([*command, str(ours[0])], check=True, cwd=tmp_path, capture_output=True)
    script = "import sys, pathlib, calm_core.registry.wheel as wheel; wheel.write_wheel(pathlib.Path(sys.argv[1]))"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "again" / ours[0].name).read_bytes() == ours[0].read_bytes()


def test_what_the_bare_library_needs_is_named_with_its_version() -> None:
    needed = {Requirement(line).name for line in needed_packages()}
    assert {"torch", "mlflow-skinny", "pyyaml"} <= needed
    assert not {"kfp", "deepspeed", "typer", "jinja2"} & needed
    assert all(Requirement(line).specifier and "+" not in line for line in needed_packages())
