"""Models of others in a real MLflow store: nothing that they bring along is run, whatever of ours meets them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from calm_cli.main import main
from calm_core.config import RegistryConfig
from calm_core.errors import CalmError
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts
from calm_core.weights.registered import LOADER_MODULE, registered_artifacts, registered_evaluation
from tests.mlflow_tables import new_store


class Payload(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]  # of MLflow's lazy module
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)

    def predict(self, context: object, model_input: list[str]) -> list[str]:
        return model_input


@pytest.fixture(scope="module")
def store(evaluation_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A new store; its files lie beside it. The evaluation is made before, or it would be told of in this store."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = new_store(folder)
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("evil", (folder / "artifacts").as_uri())
    yield uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unset, or it would count for all tests after these


@pytest.fixture(autouse=True)
def environment(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "evil")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # MLflow sets it below; both are gone after the test
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    mlflow.set_tracking_uri(store)
    mlflow.set_experiment("evil")


def module_that_leaves(trace: Path, folder: Path, name: str) -> Path:
    """A module, or the package of it, that leaves a file behind when it is imported."""
    module = folder / f"{name.replace('.', '/')}.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"open({str(trace)!r}, 'w')\ndef _load_pyfunc(path): return None\n")
    return folder / (f"{name}.py" if "." not in name else name.split(".")[0])


def pickled(trace: Path, folder: Path) -> dict[str, Any]:
    return {"python_model": Payload(trace)}


def with_a_loader_in_code_of_its_own(trace: Path, folder: Path) -> dict[str, Any]:
    code = module_that_leaves(trace, folder / "code", "evil_loader")
    return {"loader_module": "evil_loader", "code_paths": [str(code)]}


def with_code_of_our_loaders_name(trace: Path, folder: Path) -> dict[str, Any]:
    code = module_that_leaves(trace, folder / "code", LOADER_MODULE)
    return {"loader_module": LOADER_MODULE, "code_paths": [str(code)]}


def with_an_installed_loader(trace: Path, folder: Path) -> dict[str, Any]:
    module_that_leaves(trace, folder / "installed", "other_loader")
    sys.path.append(str(folder / "installed"))
    return {"loader_module": "other_loader"}


def with_a_model_as_code(trace: Path, folder: Path) -> dict[str, Any]:
    """MLflow's own way around pickles, and its variable that forbids them."""
    code = folder / "evil_model.py"
    code.write_text(
        f"import mlflow\nopen({str(trace)!r}, 'w')\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, model_input: list[str]) -> list[str]:\n        return model_input\n"
        "mlflow.models.set_model(Model())\n"
    )
    return {"python_model": str(code)}


HOSTILE = [
    pickled,
    with_a_model_as_code,
    with_a_loader_in_code_of_its_own,
    with_code_of_our_loaders_name,
    with_an_installed_loader,
]


@pytest.fixture(params=HOSTILE, ids=lambda make: make.__name__)
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["mlflow.models.model.ModelInfo"]:
    """A model that leaves a file behind where anything of it is run; at the end there is none."""
    trace = tmp_path / "ran"
    brought = request.param(trace, tmp_path)
    if "python_model" not in brought:
        (tmp_path / "data").mkdir()
        brought["data_path"] = str(tmp_path / "data")
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="model", pip_requirements=[], **brought)
    trace.unlink(missing_ok=True)  # MLflow has imported it
    for name in ("evil_loader", "other_loader"):
        sys.modules.pop(name, None)
    yield logged
    assert not trace.exists()


def registered(logged: "mlflow.models.model.ModelInfo", name: str, **tags: str) -> str:
    """The number of a version of this model, which is champion."""
    version = mlflow.register_model(logged.model_uri, name, tags=tags).version
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", version)
    return str(version)


def test_mlflow_itself_would_run_it(tmp_path: Path) -> None:
    """Or nothing below would say anything."""
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="model", python_model=Payload(tmp_path / "ran"), pip_requirements=[])
    with pytest.raises(Exception, match=r"predict|NoneType"):
        mlflow.pyfunc.load_model(logged.model_uri).predict(["the"])
    assert (tmp_path / "ran").exists()


def test_it_is_not_loaded_whatever_its_address(hostile: "mlflow.models.model.ModelInfo") -> None:
    number = registered(hostile, "evil")
    for uri in (f"models:/evil/{number}", "models:/evil@champion", hostile.model_uri, f"runs:/{hostile.run_id}/model"):
        with pytest.raises(CalmError, match=f"{uri}: is not a CALM model"):
            load_generator(uri)
        for opened in (registered_artifacts(uri), registered_evaluation(uri)):
            with pytest.raises(CalmError, match=f"{uri}: is not a CALM model"), opened:
                pass


COMMANDS = {
    "generate": "generate the --model MODEL",
    "evaluate": "evaluate MODEL --dataset DATASET --output out",
    "compare": "compare MODEL EVALUATION",
    "report": "report MODEL",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_anything_of_it(
    command: str,
    hostile: "mlflow.models.model.ModelInfo",
    dataset_uri: str,
    evaluation_uri: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"models:/evil/{registered(hostile, 'evil')}"
    words = {"MODEL": uri, "DATASET": dataset_uri, "EVALUATION": evaluation_uri}
    with pytest.raises(SystemExit) as ended:
        main([words.get(word, word) for word in COMMANDS[command].split()])
    assert ended.value.code == 1
    assert f"{uri}: is not a CALM model; it is not loaded" in capsys.readouterr().err


def test_a_folder_of_a_pages_name_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="model", python_model=Payload(tmp_path / "ran"), pip_requirements=[])
        mlflow.log_text("", "report.html/page")
    uri = f"models:/evil/{registered(logged, 'evil')}"
    with pytest.raises(SystemExit):
        main(["report", uri])
    assert f"{uri}: is not a CALM model; it is not loaded" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_registration_neither_takes_it_for_the_model_nor_for_a_champion_to_compare_with(
    hostile: "mlflow.models.model.ModelInfo",
    dataset_uri: str,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
) -> None:
    """Though its tags say that it is the version of this very evaluation."""
    name = tmp_path.name
    tags = {"calm.evaluation_digest": Artifact(evaluation_uri, EvaluationFacts).digest}
    number = registered(hostile, name, **tags)
    autoencoder, calm = model_uris
    made = register_model(
        RegistryConfig(model_name=name),
        calm,
        evaluation_uri,
        str(tmp_path / "registration"),
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder,
    )
    assert made.facts.version != number and made.facts.promoted
