"""Which version a URI names, in a real MLflow store; what is there instead is told in few words."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from calm_core.errors import CalmError
from calm_core.weights.versions import exact_uri, versions_of
from tests.mlflow_tables import new_store


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A registry with twelve models; the one that it's about has versions 1 to 3, 5 and 7, and the alias good for 3."""
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.set_tracking_uri(new_store(folder))
    client = mlflow.MlflowClient()
    for number in range(11):
        client.create_registered_model(f"model {number:02}")
    client.create_registered_model("it's")
    for _ in range(7):
        client.create_model_version("it's", Path(folder / "files").as_uri())
    for number in (4, 6):
        client.delete_model_version("it's", str(number))
    client.set_registered_model_alias("it's", "good", "3")
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unset, or it would count for all tests after these


@pytest.mark.parametrize(
    ("uri", "exact"),
    [
        ("models:/it's@good", "models:/it's/3"),
        ("models:/it's/5", "models:/it's/5"),
        ("models:/it's/007", "models:/it's/7"),
        ("models:/it's/latest", "models:/it's/7"),
        ("models:/it's@latest", "models:/it's/7"),
        ("runs:/0123/model", "runs:/0123/model"),
        ("mlflow-artifacts:/1/models", "mlflow-artifacts:/1/models"),
        (f"models:/m-{'0' * 32}", f"models:/m-{'0' * 32}"),
    ],
)
def test_all_that_names_a_version_is_understood(uri: str, exact: str) -> None:
    assert exact_uri(uri) == exact


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/it's/4", "models:/it's/4: it's has no version 4; it has 1 to 3, 5 and 7"),
        ("models:/it's/goood", "models:/it's/goood: it's has no version goood; it has 1 to 3, 5 and 7"),
        (
            "models:/its@good",
            "models:/its@good: there is no registered model its; did you mean models:/it's@good? registered: it's, "
            "model 00, model 01, model 02, model 03, model 04, model 05, model 06 and 4 more",
        ),
    ],
)
def test_what_there_is_instead_is_told_in_few_words(uri: str, message: str) -> None:
    with pytest.raises(CalmError) as failure:
        exact_uri(uri)
    assert str(failure.value) == message


def test_an_old_one_of_very_many_is_found_and_all_are_listed(tmp_path: Path) -> None:
    """A thousand newer ones are as many as MLflow answers at once."""
    client, many = mlflow.MlflowClient(), 1100
    client.create_registered_model("many")
    client.create_model_version("many", (tmp_path / "files").as_uri())
    with closing(sqlite3.connect(client.tracking_uri.removeprefix("sqlite:///"))) as database, database:
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(model_versions)")]
        changed = {"version": "number", "last_updated_time": "last_updated_time + number"}
        database.execute(
            f"WITH RECURSIVE n(number) AS (SELECT 2 UNION ALL SELECT number + 1 FROM n WHERE number < {many}) "
            f"INSERT INTO model_versions ({', '.join(columns)}) "
            f"SELECT {', '.join(changed.get(name, name) for name in columns)} "
            "FROM model_versions, n WHERE name = 'many' AND version = 1"
        )
    assert exact_uri("models:/many/1") == "models:/many/1"
    assert exact_uri("models:/many/latest") == f"models:/many/{many}"
    assert [*versions_of(client, "many")] == [str(number) for number in range(1, many + 1)]
    with pytest.raises(CalmError, match=rf"many has no version {many + 1}; it has 1 to {many}$"):
        exact_uri(f"models:/many/{many + 1}")
    with pytest.raises(CalmError, match=rf"it has 1 to {many}$"):
        exact_uri(f"models:/many/{10**20}")
