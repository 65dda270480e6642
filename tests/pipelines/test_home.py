"""The folder of local runs: which paths it may have, and what happens to MLflow's records when it is moved."""

import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from calm_core.errors import CalmError
from calm_core.telemetry.outbox import OUTBOX_VARIABLE, Outbox, Tags
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, parse
from pipelines.local.home import HOME_VARIABLE, Home
from pipelines.local.tracking import read_tracking, send_what_is_left, use_tracking
from tests.mlflow_tables import make_older
from tests.telemetry.full_disk import disk_with


@pytest.fixture(autouse=True)
def no_other_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Use a folder as home, as a new process would."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(HOME_VARIABLE, str(path))
    home = Home.find()
    use_tracking(home, "calm")
    mlflow.set_tracking_uri(f"sqlite:///{home.mlflow_database}")
    return home


def log(text: str) -> str:
    """A run with a file; returns its id."""
    with mlflow.start_run(experiment_id=mlflow.get_experiment_by_name("calm").experiment_id) as run:
        mlflow.log_text(text, "text.txt")
    return str(run.info.run_id)


@pytest.mark.parametrize("name", ["a?b", "a%41b", "100%", "new\nline"])
@pytest.mark.parametrize("place", [HOME_VARIABLE, "current folder"])
def test_a_home_that_no_database_url_can_name_is_refused_before_anything_is_written(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == HOME_VARIABLE:
        monkeypatch.setenv(HOME_VARIABLE, name)
    else:
        monkeypatch.delenv(HOME_VARIABLE, raising=False)
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CalmError, match=r"cannot keep its database.*set CALM_HOME to another folder"):
        Home.find()
    assert set(tmp_path.rglob("*")) == before


def test_a_home_with_unusual_characters_has_its_files_where_they_belong_and_can_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with quotes, spaces and "#" in its path, once moved to where "_" would match another letter."""
    home = begin(tmp_path / 'it\'s "my" #1 höme', monkeypatch)
    first = log("before")
    assert home.mlflow_database.exists() and list(home.mlflow_artifacts.rglob("text.txt"))
    assert set(tmp_path.iterdir()) == {home.path}

    moved = begin(home.path.rename(tmp_path / "new_home"), monkeypatch)
    second = log("after")
    read_tracking(moved)
    assert mlflow.artifacts.load_text(f"runs:/{first}/text.txt") == "before"
    assert mlflow.artifacts.load_text(f"runs:/{second}/text.txt") == "after"
    assert len(list(moved.mlflow_artifacts.rglob("text.txt"))) == 2
    assert set(tmp_path.iterdir()) == {moved.path}


def test_a_copied_home_leaves_the_original_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = begin(tmp_path / "original", monkeypatch)
    first = log("before")
    copied = begin(Path(shutil.copytree(original.path, tmp_path / "copy")), monkeypatch)
    second = log("after")
    assert mlflow.artifacts.load_text(f"runs:/{first}/text.txt") == "before"
    assert len(list(original.mlflow_artifacts.rglob("text.txt"))) == 1
    assert len(list(copied.mlflow_artifacts.rglob("text.txt"))) == 2
    shutil.rmtree(original.path)
    assert mlflow.artifacts.load_text(f"runs:/{first}/text.txt") == "before"
    assert mlflow.artifacts.load_text(f"runs:/{second}/text.txt") == "after"


def test_records_of_files_that_are_still_there_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an experiment whose files lie in a folder that is no home's."""
    other = begin(tmp_path / "other", monkeypatch)
    with sqlite3.connect(other.mlflow_database) as database:
        elsewhere = (tmp_path / "shared" / "mlartifacts").as_uri()
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'calm'", (elsewhere,))
    (tmp_path / "shared" / "mlartifacts").mkdir(parents=True)
    begin(tmp_path / "other", monkeypatch)
    assert mlflow.get_experiment_by_name("calm").artifact_location == elsewhere


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mlflow.db").write_bytes(b"something else, long enough to be looked at" * 100)
    with pytest.raises(CalmError, match=r"mlflow.db: cannot be used \(file is not a database\).*move it away"):
        begin(tmp_path / "home", monkeypatch)


def test_a_copy_of_a_home_that_may_not_be_looked_at_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of another user; here the system refuses the look since the name is too long for it."""
    home = begin(tmp_path / "home", monkeypatch)
    with sqlite3.connect(home.mlflow_database) as database:
        elsewhere = f"file:///home/{'other' * 60}/mlartifacts"
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'calm'", (elsewhere,))
    begin(home.path, monkeypatch)
    assert mlflow.get_experiment_by_name("calm").artifact_location == home.mlflow_artifacts.as_uri()


def test_what_mlflow_was_not_told_is_told_where_the_home_was_moved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTBOX_VARIABLE, "")  # unset again after the test, whatever is set in between
    monkeypatch.delenv(OUTBOX_VARIABLE)
    home = begin(tmp_path / "before", monkeypatch)
    run_id = log("text")
    Outbox(str(home.mlflow_database), run_id).add(Tags(values={"calm.digest": "abc"}))
    monkeypatch.delenv(OUTBOX_VARIABLE)
    home.path.rename(tmp_path / "after")
    moved = begin(tmp_path / "after", monkeypatch)
    assert list(moved.outbox.iterdir())
    send_what_is_left(moved)
    deadline = time.monotonic() + 60
    while list(moved.outbox.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert mlflow.MlflowClient().get_run(run_id).data.tags["calm.digest"] == "abc"


@pytest.mark.parametrize(
    "revision",
    ["4465047574b1", "71994744cf8e"],
    ids=["MLflow 2, without logged models", "MLflow 3.2"],
)
def test_the_database_of_an_older_mlflow_is_upgraded_and_a_copy_of_it_stays(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of MLflow; once, and by a command that only reads too."""
    (tmp_path / "home").mkdir()
    database = tmp_path / "home" / "mlflow.db"
    make_older(f"sqlite:///{database}", revision)
    database.chmod(0o600)
    (tmp_path / "home" / "mlflow.db.upgrading.part").write_text("left by one that was killed")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    # The first one is of a process that goes on; of two commands that come at once, the second waits for the first.
    with closing(sqlite3.connect(database)) as other, ThreadPoolExecutor(2) as commands:
        assert list(commands.map(lambda _: read_tracking(Home.find(make=False)), range(2))) == [None, None]
        with other:
            other.execute("INSERT INTO tags (key, value, run_uuid) VALUES ('told', 'later', '0123')")
    home = begin(tmp_path / "home", monkeypatch)
    run = mlflow.MlflowClient().get_run("0123")
    assert (run.data.metrics, run.data.tags, run.info.experiment_id) == ({"loss": 0.5}, {"told": "later"}, "7")
    assert run.info.artifact_uri == f"{home.mlflow_artifacts.as_uri()}/0123"
    assert [model.name for model in mlflow.MlflowClient().search_registered_models()] == ["calm"]
    log("and on")

    [told] = [parse(line).note for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    backup = database.with_name(f"mlflow.db.{revision}.backup")
    assert told == f"{database}: was of an older MLflow, and has been upgraded; as it was, it is {backup}"
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
        assert copy.execute("SELECT count(*) FROM runs").fetchall() == [(1,)]
    assert {file.stat().st_mode & 0o777 for file in (database, backup)} == {0o600}
    assert sorted(file.name for file in database.parent.glob("mlflow.db*")) == ["mlflow.db", backup.name]


def test_a_database_that_cannot_be_upgraded_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says why: not that MLflow's log has more to read, which is all that its last line says."""
    (tmp_path / "home").mkdir()
    database = tmp_path / "home" / "mlflow.db"
    make_older(f"sqlite:///{database}", "4465047574b1")
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("CREATE TABLE logged_models (name TEXT)")  # one that the upgrade wants to make
    before = database.read_bytes()
    with disk_with(-len(before) // 2, database), pytest.raises(CalmError, match=r"disk.*free space there, then run"):
        begin(tmp_path / "home", monkeypatch)
    with pytest.raises(CalmError, match=r"cannot be upgraded \(.*table logged_models already exists.*it is as it was"):
        begin(tmp_path / "home", monkeypatch)
    assert [file.name for file in database.parent.glob("mlflow.db*")] == ["mlflow.db"]
    assert database.read_bytes() == before
