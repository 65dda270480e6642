"""A registry of their own for the tests of a module."""

from pathlib import Path

import mlflow
import pytest

from tests.mlflow_tables import new_store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an MLflow store."""
    return new_store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def in_a_folder_with_a_store(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is MLflow's, and the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    mlflow.set_tracking_uri(database)
