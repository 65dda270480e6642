"""The stage that writes the page about a run, on artifacts that are made up, with and without MLflow."""

import re
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from calm_core.errors import ArtifactError
from calm_core.report.stage import report
from calm_core.report.times import stage_times
from calm_core.store.artifact import Artifact
from calm_core.store.facts import ReportFacts, StageTime
from calm_core.telemetry.mlflow_run import COMMAND_VARIABLE, PARENT_RUN_VARIABLE, STAGE_TAG
from calm_core.telemetry.outbox import OUTBOX_VARIABLE
from tests.mlflow_tables import new_store
from tests.report.pages import write_run

INPUTS = ("dataset", "autoencoder", "calm", "evaluation", "registration")


@pytest.fixture
def uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ("MLFLOW_TRACKING_URI", PARENT_RUN_VARIABLE, COMMAND_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return write_run(tmp_path)


def written(uris: dict[str, str], output: Path) -> Artifact[ReportFacts]:
    return report(*(uris[kind] for kind in INPUTS), str(output))


def test_the_page_is_of_the_run_and_the_verdict_stands_in_the_manifest(uris: dict[str, str], tmp_path: Path) -> None:
    made = written(uris, tmp_path / "report")
    made.check_files()
    page = made.read("report.html").decode()
    assert made.facts.headline == "calm version 4 is champion"
    assert f"<h1>{made.facts.headline}</h1>" in page
    assert all(digest in page for digest in made.manifest.parents.values())
    assert set(made.manifest.parents) == set(INPUTS)
    assert {"Data", "Learning curves"} <= set(re.findall(r"<h2[^>]*>(.*?)</h2>", page))


def test_equal_inputs_give_the_digest_again_whatever_the_time_took(
    uris: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command and other seconds: another page, and the same report of the same things."""
    first = written(uris, tmp_path / "first")
    monkeypatch.setenv(COMMAND_VARIABLE, "calm run --seed 3")
    second = written(uris, tmp_path / "second")
    assert first.facts.page != second.facts.page and "calm run --seed 3" in second.read("report.html").decode()
    assert first.digest == second.digest


def test_the_page_is_vouched_for(uris: dict[str, str], tmp_path: Path) -> None:
    made = written(uris, tmp_path / "report")
    with open(tmp_path / "report" / "report.html", "a") as file:
        file.write("<script>alert(1)</script>")
    with pytest.raises(ArtifactError, match=r"report\.html: file is damaged"):
        made.check_files()
    again = written(uris, tmp_path / "report")  # the same stage again repairs it
    again.check_files()


def test_the_report_of_another_run_is_replaced_when_that_is_asked_for_with_its_page(
    uris: dict[str, str], tmp_path: Path
) -> None:
    first = written(uris, tmp_path / "report")
    other = write_run(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match="holds another report"):
        written(other, tmp_path / "report")
    first.check_files()
    report(*(other[kind] for kind in INPUTS), first.uri, overwrite=True).check_files()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"also holds mine\.txt, not listed"):
        report(*(uris[kind] for kind in INPUTS), first.uri, overwrite=True)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("evaluation", "is the evaluation of another"), ("registration", "is the registration of another")],
)
def test_what_belongs_to_another_run_is_refused(uris: dict[str, str], tmp_path: Path, kind: str, said: str) -> None:
    """An evaluation of another model would give its score to this one."""
    other = write_run(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match=said):
        written(uris | {kind: other[kind]}, tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = new_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    client.create_experiment("calm", artifact_location=(tmp_path / "mlartifacts").as_uri())
    return client


def test_it_lies_in_the_runs_of_mlflow_that_it_tells_of(
    uris: dict[str, str], tmp_path: Path, tracked: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tracked.get_experiment_by_name("calm")
    assert experiment is not None
    parent, version_run = (tracked.create_run(experiment.experiment_id).info.run_id for _ in range(2))
    tracked.create_registered_model("calm")
    for _ in range(4):
        tracked.create_model_version("calm", (tmp_path / "model").as_uri(), run_id=version_run)
    monkeypatch.setenv(PARENT_RUN_VARIABLE, parent)
    page = written(uris, tmp_path / "report").read("report.html")
    for run_id in (parent, version_run):
        assert Path(tracked.download_artifacts(run_id, "report.html", str(tmp_path))).read_bytes() == page


def test_times_are_those_of_the_runs_below_the_pipelines_and_the_rest_was_cached(tracked: MlflowClient) -> None:
    experiment = tracked.get_experiment_by_name("calm")
    assert experiment is not None
    parent = tracked.create_run(experiment.experiment_id, start_time=1_000_000).info.run_id

    def ran(stage: str, begin: int, end: int | None) -> None:
        tags = {STAGE_TAG: stage, "mlflow.parentRunId": parent}
        run_id = tracked.create_run(experiment.experiment_id, start_time=begin, tags=tags).info.run_id
        if end:
            tracked.set_terminated(run_id, end_time=end)

    ran("prepare", 1_015_000, 1_020_000)  # its last step; the others have no run of their own
    ran("train-calm", 1_030_000, 1_031_000)  # a first try
    ran("train-calm", 1_040_000, 1_100_000)
    ran("register", 1_110_000, None)
    assert stage_times(parent, {"train-autoencoder": 7.5, "evaluate-transformer": 3.0}) == [
        StageTime(stage="prepare", seconds=20.0),
        StageTime(stage="train-autoencoder", seconds=7.5, cached=True),
        StageTime(stage="train-calm", seconds=60.0),
        StageTime(stage="evaluate", cached=True),
        StageTime(stage="register", cached=True),
        StageTime(stage="evaluate-transformer", seconds=3.0, cached=True),
    ]
    assert stage_times("", {"train-calm": 1.0})[2] == StageTime(stage="train-calm", seconds=1.0)
