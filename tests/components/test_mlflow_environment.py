"""Whose MLflow a pod uses: its ConfigMap's, or that of Kubeflow's MLflow plugin."""

import os

import pytest

from components.mlflow_environment import use_own_mlflow
from components.training import node


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALM_MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("CALM_MLFLOW_TRACKING_USERNAME", "me")


def told() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_TRACKING_")}


def test_ours_is_used_where_no_other_is_named() -> None:
    use_own_mlflow()
    assert told() == {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_TRACKING_USERNAME": "me"}


def test_the_plugins_server_is_used_without_our_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://plugin:5000")
    use_own_mlflow()
    assert told() == {"MLFLOW_TRACKING_URI": "http://plugin:5000"}


def test_nodes_of_a_trainjob_do_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "no number")
    assert node.main("spec") == 2
    assert told()["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
