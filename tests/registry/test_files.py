"""Models of others in a real MLflow store: nothing that they bring along is run."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from calm_core.errors import CalmError
from calm_core.registry.files import _RemoteFiles
from calm_core.registry.load import load_generator


class Payload(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]  # of MLflow's lazy module
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)

    def predict(self, context: object, model_input: list[str]) -> list[str]:
        return model_input


@pytest.fixture(scope="module", autouse=True)
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An experiment in a new store; returns its id."""
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield mlflow.create_experiment("evil", (folder / "artifacts").as_uri())
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unset, or it would count for all tests after these


def register_folder(folder: Path) -> str:
    """A registered model whose files lie in a folder; returns its URI."""
    name = folder.parent.name
    mlflow.MlflowClient().create_registered_model(name)
    return f"models:/{name}/{mlflow.MlflowClient().create_model_version(name, folder.as_uri()).version}"


def addresses(logged: "mlflow.models.model.ModelInfo") -> list[str]:
    """All the ways in which MLflow names a registered model."""
    version = mlflow.register_model(logged.model_uri, "evil").version
    mlflow.MlflowClient().set_registered_model_alias("evil", "champion", version)
    return [f"models:/evil/{version}", "models:/evil@champion", logged.model_uri, f"runs:/{logged.run_id}/model"]


def test_a_pickled_model_is_not_unpickled(experiment: str, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.pyfunc.log_model(name="model", python_model=Payload(trace), pip_requirements=[])
    for uri in addresses(logged):
        with pytest.raises(CalmError, match=f"{uri}: is not a CALM model"):
            load_generator(uri)
    assert not trace.exists()


def log_with_code(experiment: str, tmp_path: Path, loader: str) -> "mlflow.models.model.ModelInfo":
    """Log a model that brings a module of the loader's name along, which leaves a file behind when it is imported."""
    module = tmp_path / "code" / f"{loader.replace('.', '/')}.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef _load_pyfunc(path): return None\n")
    (tmp_path / "data").mkdir(exist_ok=True)
    with mlflow.start_run(experiment_id=experiment):
        return mlflow.pyfunc.log_model(
            name="model",
            loader_module=loader,
            data_path=str(tmp_path / "data"),
            code_paths=[str(tmp_path / "code" / loader.split(".")[0]) + ("" if "." in loader else ".py")],
            pip_requirements=[],
        )


@pytest.mark.parametrize("loader", ["evil_loader", "calm_core.registry.load"])
def test_code_that_a_model_brings_along_is_not_imported(
    loader: str, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    logged = log_with_code(experiment, tmp_path, loader)
    (tmp_path / "ran").unlink(missing_ok=True)
    monkeypatch.delitem(sys.modules, "evil_loader", raising=False)
    for uri in addresses(logged):
        with pytest.raises(CalmError, match=f"{uri}: is not a CALM model"):
            load_generator(uri)
    assert not (tmp_path / "ran").exists()


BOMB = "b0: &b0 {x: 1}\n" + "".join(f"b{n + 1}: &b{n + 1} {{<<: [*b{n}, *b{n}]}}\n" for n in range(40))
"""Two to the power of 40 keys, for whoever follows aliases."""
OURS = {"loader_module": "calm_core.registry.load", "data": "data"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "flavors: 5",
        "flavors: {python_function: [1]}",
        "[" * 100_000,
        f"n: {'9' * 5000}",
        BOMB,
        "\x00",
        yaml.safe_dump({"flavors": {"python_function": OURS | {"loader_module": ["calm_core.registry.load"]}}}),
        yaml.safe_dump({"flavors": {"python_function": OURS | {"data": 5}}}),
        yaml.safe_dump({"flavors": {"python_function": {"loader_module": "calm_core.registry.load"}}}),
    ],
)
def test_a_description_that_is_none_of_ours_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text(text)
    uri = register_folder(tmp_path / "model")
    with pytest.raises(CalmError, match=f"^{uri}: is not a CALM model"):
        load_generator(uri)


@pytest.mark.parametrize("data", ["/etc", "../outside", "link", "a\\b", "."])
def test_data_outside_of_a_models_folder_are_not_read(data: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "outside")
    flavors = {"python_function": OURS | {"data": data}}
    (tmp_path / "model" / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    uri = register_folder(tmp_path / "model")
    with pytest.raises(CalmError, match=r"no plain path|leads out of the folder"):
        load_generator(uri)


def test_a_folder_of_a_models_name_is_not_taken_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models:" / "calm@champion").mkdir(parents=True)
    with pytest.raises(CalmError, match=r"^models:/calm@champion: there is no registered model calm"):
        load_generator("models:/calm@champion")


def test_without_a_tracking_uri_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would take a database in the current folder, and make it."""
    monkeypatch.chdir(tmp_path)
    uri = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unset
    try:
        with pytest.raises(CalmError, match=r"mlflow.db: there is no such database; set MLFLOW_TRACKING_URI"):
            load_generator("models:/calm@champion")
    finally:
        mlflow.set_tracking_uri(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["", "model/"])
def test_files_from_elsewhere_are_copied_as_far_as_they_are_what_they_should_be(place: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source" / place, tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    target.mkdir()
    (source / "file").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"12345")
    files = _RemoteFiles(str(target), LocalArtifactRepository((tmp_path / "source").as_uri()), place)
    for path, limit, message in (
        ("file", 4, "5 bytes, more than expected"),
        ("folder", 5, "is missing"),
        ("nowhere", 5, "is missing"),
        ("../secret", 5, "no plain path"),
        (str(tmp_path / "secret"), 5, "no plain path"),
    ):
        with pytest.raises(CalmError, match=message):
            files.bring(path, limit)
    assert list(target.rglob("*")) == []
    assert files.read("file", 5) == b"12345"
