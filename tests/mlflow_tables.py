"""Databases of MLflow: empty ones in no time, and those that older versions have made."""

import tempfile
from functools import cache
from pathlib import Path

import mlflow
import sqlalchemy
from alembic import command
from alembic.config import Config
from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
from mlflow.store.tracking.dbmodels.initial_models import Base


def new_store(folder: Path) -> str:
    """The URI of a new database in a folder: a copy, since MLflow takes seconds to make one, by all its migrations."""
    (folder / "mlflow.db").write_bytes(_new())
    return f"sqlite:///{folder}/mlflow.db"


@cache
def _new() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_sqlalchemy_engine(f"sqlite:///{folder}/mlflow.db")
        _initialize_tables(engine)
        engine.dispose()
        return (Path(folder) / "mlflow.db").read_bytes()


def make_older(uri: str, revision: str) -> None:
    """Make the tables that MLflow had at a revision in an empty database, with an experiment and a run in them.

    Args:
        uri: Of the database.
        revision: Of MLflow's tables; it has to be one that knew the columns below.
    """
    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)  # as MLflow 0.x made them
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    config.set_main_option("sqlalchemy.url", uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with engine.begin() as connection:
        for statement in (
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (7, 'calm', 'file:///gone/mlartifacts', 'active')",
            "INSERT INTO runs (run_uuid, name, user_id, experiment_id, status, start_time, lifecycle_stage, "
            "artifact_uri) "
            "VALUES ('0123', 'train', 'me', 7, 'FINISHED', 1, 'active', 'file:///gone/mlartifacts/0123')",
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "VALUES ('loss', 0.5, 1, '0123', 3, false)",
            "INSERT INTO latest_metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "VALUES ('loss', 0.5, 1, '0123', 3, false)",
            "INSERT INTO registered_models (name) VALUES ('calm')",
        ):
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()
