"""The stage that writes the page about a run, on artifacts that are made up, with and without MLflow."""

import re
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from calm_cli.main import main
from calm_core.errors import ArtifactError
from calm_core.report.stage import report
from calm_core.report.times import stage_times
from calm_core.store.artifact import Artifact
from calm_core.store.facts import ReportFacts, StageTime
from calm_core.telemetry.mlflow_run import COMMAND_VARIABLE, DIGEST_TAG, PARENT_RUN_VARIABLE, STAGE_TAG
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
    uris: dict[str, str],
    tmp_path: Path,
    tracked: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["report", f"runs:/{run_id}", "--output", str(tmp_path / run_id)])
        assert (tmp_path / run_id).read_bytes() == page
    for uri in (f"runs:/{parent}/model", "mlflow-artifacts:/x", f"models:/m-{parent}"):
        with pytest.raises(SystemExit, match=r"^1$"):
            main(["report", uri])
        assert f"{uri}: has no report; name models:/NAME@ALIAS" in capsys.readouterr().err


def test_times_are_those_of_the_runs_that_made_it_and_what_is_of_another_pipeline_was_cached(
    tracked: MlflowClient,
) -> None:
    experiment = tracked.get_experiment_by_name("calm")
    assert experiment is not None

    def ran(stage: str, digest: str, seconds: tuple[int, int | None], parent: str = "") -> str:
        tags = {STAGE_TAG: stage, DIGEST_TAG: digest} | ({"mlflow.parentRunId": parent} if parent else {})
        run_id = tracked.create_run(experiment.experiment_id, start_time=1000 * seconds[0], tags=tags).info.run_id
        if seconds[1]:
            tracked.set_terminated(run_id, end_time=1000 * seconds[1])
        return str(run_id)

    first, second = ran("", "", (1000, None)), ran("", "", (2000, None))
    ran("prepare", "d", (1015, 1020), first)  # its last step; the others have no run of their own
    ran("train-calm", "of other settings", (1030, 1100), first)
    ran("evaluate", "e", (1100, 1109), first)
    ran("train-calm", "", (2030, 2040), second)  # a try that failed
    ran("train-calm", "c", (2040, 2100), second)
    ran("evaluate", "e", (2100, 2107), second)
    ran("evaluate", "e", (2200, 2203))  # by hand
    ran("register", "r", (2110, None), second)
    made = {"prepare": "d", "train-calm": "c", "evaluate": "e", "register": "r", "train-transformer": "t"}
    assert stage_times(made, second, second) == [
        StageTime(stage="prepare", seconds=20.0, cached=True),
        StageTime(stage="train-calm", seconds=60.0),
        StageTime(stage="evaluate", seconds=7.0),
        StageTime(stage="register"),
        StageTime(stage="train-transformer"),
    ]
    assert [each.cached for each in stage_times(made, second)] == [False] * 5  # nobody says of which pipeline
    assert stage_times(made, "") == [StageTime(stage=stage) for stage in made]
