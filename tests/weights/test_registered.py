"""The files of registered models in a real MLflow store: which are read, and as what."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from calm_core.errors import CalmError
from calm_core.registry.evidence import _signature_of
from calm_core.registry.gate import Signature
from calm_core.registry.load import load_generator
from calm_core.weights.registered import _RemoteFiles, registered_signature
from pipelines.local.object_store import free_port
from tests.mlflow_tables import new_store


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    mlflow.set_tracking_uri(new_store(tmp_path_factory.mktemp("mlflow")))
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unset, or it would count for all tests after these


def register_folder(folder: Path) -> str:
    """A registered model whose files lie in a folder; returns its URI."""
    name = folder.parent.name
    mlflow.MlflowClient().create_registered_model(name)
    return f"models:/{name}/{mlflow.MlflowClient().create_model_version(name, folder.as_uri()).version}"


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


def test_a_signature_is_what_the_description_says(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    told = {"inputs": None, "outputs": '[{"type": "string"}]', "params": '[{"name": "n", "type": "long"}]'}
    description = {"flavors": {"python_function": OURS}, "signature": told}
    (tmp_path / "model" / "MLmodel").write_text(yaml.safe_dump(description))
    uri = register_folder(tmp_path / "model")
    assert registered_signature(uri) == told
    assert _signature_of(uri) == Signature(None, [{"type": "string"}], {"n": ("long", None)})


def test_a_signature_that_cannot_be_read_now_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment without MLflow would let a version pass that callers cannot call."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{free_port()}")
    try:
        with pytest.raises(CalmError) as caught:
            _signature_of("models:/calm/1")
    finally:
        mlflow.set_tracking_uri(uri)
    assert caught.value.can_pass
