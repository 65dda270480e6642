"""`calm sweep --cluster` against a server that holds every request against Kubeflow's models, and a real MLflow."""

import csv
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.cluster.conftest import Call
from tests.cluster.servers import Kubeflow

SWEEP = ("sweep", "--cluster", "--source", "s3://bucket/texts/*.jsonl", "--pipeline-root", "s3://bucket/root")
GRID = ("--grid", "calm.learning_rate=1e-3,2e-3", "--grid", "seed=0,1", "--output", "out")


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def mlflow(tracking: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    return MlflowClient(tracking)


def end(run: dict[str, Any], mlflow: MlflowClient, brierlm: float | None) -> None:
    """Let a run end; without a score it has failed."""
    run["state"] = "FAILED" if brierlm is None else "SUCCEEDED"
    if brierlm is not None:
        tags = {"calm.kubeflow_run": run["run_id"], "calm.stage": "report"}
        scores = mlflow.create_run("0", tags=tags).info.run_id
        numbers = {"brierlm": brierlm, "brierlm_low": brierlm - 1, "brierlm_high": brierlm + 1, "seconds": 60.0}
        for name, value in (numbers | {f"brier_{n}": 0.1 * n for n in range(1, 5)}).items():
            mlflow.log_metric(scores, name, value)


def rows() -> list[dict[str, str]]:
    with Path("out", "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_runs_are_submitted_once_and_collected(kubeflow: Kubeflow, mlflow: MlflowClient, call: Call) -> None:
    for _ in range(2):
        code, out, err = call(*SWEEP, *GRID, "--host", kubeflow.url)
        assert code == 75
        assert "4 runs are at work" in err and "at work: 1 calm learning_rate=0.001 seed=0: " in out
    parameters = [run["runtime_config"]["parameters"] for run in kubeflow.runs]
    assert [(each["calm"]["learning_rate"], each["seed"]) for each in parameters] == [
        (1e-3, 0),
        (1e-3, 1),
        (2e-3, 0),
        (2e-3, 1),
    ]
    assert {each["registry"]["promote"] for each in parameters} == {"never"}
    assert len({run["display_name"] for run in kubeflow.runs}) == 4
    assert rows() == []

    for run, score in zip(kubeflow.runs, (10.0, 12.0, 13.0, None), strict=True):
        end(run, mlflow, score)
    code, out, err = call(*SWEEP, *GRID, "--host", kubeflow.url)
    assert (code, len(kubeflow.runs)) == (1, 4)
    assert "1 of the runs failed; archive them in Kubeflow" in err
    assert [(row["state"], row["brierlm"]) for row in rows()] == [
        ("done", "10.0"),
        ("done", "12.0"),
        ("done", "13.0"),
        ("failed", ""),
    ]
    best, other = [line.split() for line in out.splitlines() if line.startswith("0.00")]
    assert best[:5] == ["0.002", "1", "(1", "failed)", "13.00"] and other[:3] == ["0.001", "2", "11.00"]


def test_what_was_archived_is_submitted_again(kubeflow: Kubeflow, mlflow: MlflowClient, call: Call) -> None:
    call(*SWEEP, *GRID, "--host", kubeflow.url)
    end(kubeflow.runs[0], mlflow, None)
    kubeflow.runs[0]["storage_state"] = "ARCHIVED"
    code, _, err = call(*SWEEP, *GRID, "--host", kubeflow.url)
    assert (code, len(kubeflow.runs)) == (75, 5)
    assert "1 of them submitted now" in err


def test_a_rung_is_submitted_once_the_one_before_has_ended(
    kubeflow: Kubeflow, mlflow: MlflowClient, call: Call
) -> None:
    halving = (*SWEEP, *GRID, "--halving", "2", "--min-steps", "200", "--set", "calm.steps=554", "--host", kubeflow.url)
    assert call(*halving)[0] == 75
    assert [run["runtime_config"]["parameters"]["calm"]["steps"] for run in kubeflow.runs] == [277] * 4
    for run, score in zip(kubeflow.runs, (10.0, 12.0, 13.0, 14.0), strict=True):
        end(run, mlflow, score)
    assert call(*halving)[0] == 75
    parameters = [run["runtime_config"]["parameters"]["calm"] for run in kubeflow.runs[4:]]
    assert [(each["learning_rate"], each["steps"]) for each in parameters] == [(2e-3, 554)] * 2
    for run in kubeflow.runs[4:]:
        end(run, mlflow, 20.0)
    code, out, _ = call(*halving)
    assert (code, len(kubeflow.runs)) == (0, 6)
    assert out.index("554") < out.index("20.00")


def test_a_run_whose_scores_are_nowhere_is_told(kubeflow: Kubeflow, mlflow: MlflowClient, call: Call) -> None:
    call(*SWEEP, *GRID, "--host", kubeflow.url)
    kubeflow.runs[0]["state"] = "SUCCEEDED"
    code, _, err = call(*SWEEP, *GRID, "--host", kubeflow.url)
    assert code == 1
    assert f"has no scores of the run {kubeflow.runs[0]['run_id']}" in err
