"""`calm sweep` on a miniature corpus: killed in the middle, gone on with, and with a run that fails."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from calm_cli.sweep_runs import Step, Task, Work
from calm_core.config import Config, resolve_config
from calm_core.store.facts import DatasetFacts, EvaluationFacts
from tests.conftest import sentences
from tests.docs.documented import ROOT

PROFILE = ROOT / "tests" / "pipelines" / "mini.yaml"
GRID = ("--grid", "calm.learning_rate=1e-3,2e-3", "--grid", "seed=0,1")


class Place:
    """A folder to sweep in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        ours = ("CALM_", "MLFLOW_", "KFP_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        lines = "".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(60))
        (folder / "texts.jsonl").write_text(lines)

    def start(self, *more: str) -> "subprocess.Popen[str]":
        command = ("sweep", "--profile", str(PROFILE), "--source", "texts.jsonl", "--output", "out", *GRID, *more)
        return subprocess.Popen(
            [sys.executable, "-m", "calm_cli.start", *command],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sweep(self, *more: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*more)
        out, err = process.communicate()
        assert process.returncode == code, out + err
        return out, err

    def made(self) -> dict[str, int]:
        """When each artifact was written."""
        found = self.out.glob("*-*/*/manifest.json")
        return {str(path.parent.relative_to(self.out)): path.stat().st_mtime_ns for path in found}

    def results(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.glob("results.*")}

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def at_work(self) -> list[str]:
        told = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
        return [line for line in told if str(self.folder) in line]


def kinds(made: dict[str, int]) -> dict[str, int]:
    names = [name.split("/")[1] for name in made]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, int]]:
    """A sweep that was killed once its first run was done, and what that had made."""
    place = Place(tmp_path_factory.mktemp("sweep"))
    process = place.start()
    while not list(place.out.glob("calm-*/evaluation/manifest.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 30
    while place.at_work():
        assert time.monotonic() < until, place.at_work()
        time.sleep(0.2)
    return place, place.made()


@pytest.fixture(scope="module")
def finished(killed: tuple[Place, dict[str, int]]) -> tuple[Place, str]:
    place, _ = killed
    return place, place.sweep()[0]


def test_one_that_was_killed_goes_on_and_makes_nothing_twice(
    killed: tuple[Place, dict[str, int]], finished: tuple[Place, str]
) -> None:
    place, before = killed
    made = place.made()
    assert kinds(made) == {"autoencoder": 2, "dataset": 1, "evaluation": 4, "model": 4}
    assert before.items() <= made.items()
    rows = place.rows()
    assert [(row["calm.learning_rate"], row["seed"], row["state"]) for row in rows] == [
        ("0.001", "0", "done"),
        ("0.001", "1", "done"),
        ("0.002", "0", "done"),
        ("0.002", "1", "done"),
    ]
    assert len({row["brier_1"] for row in rows}) > 1  # three steps hardly tell settings apart; seeds they do
    assert "1 calm learning_rate=0.001 seed=0: cached" in finished[1]


def test_the_results_are_what_the_evaluations_say(finished: tuple[Place, str]) -> None:
    place, out = finished
    document = json.loads((place.out / "results.json").read_text())
    assert [each["settings"] for each in document["settings"]] == [
        {"calm.learning_rate": 1e-3},
        {"calm.learning_rate": 2e-3},
    ]
    assert all(each["seeds"] == [0, 1] and each["spread"] is not None for each in document["settings"])
    for row in document["runs"]:
        evaluation = json.loads((place.out / row["evaluation"] / "evaluation.json").read_text())
        assert row["brierlm"] == evaluation["brierlm"]["value"]
        assert row["brier_1"] == evaluation["brier"]["1"]["value"]
        assert row["perplexity_bound"] == evaluation["language_model"]["perplexity"]["value"] > 1
        assert row["perplexity"] is None  # exact of a Transformer alone
    assert "calm.learning_rate  seeds  BrierLM" in out
    assert "<svg" in (place.out / "results.html").read_text()


def test_each_run_is_in_mlflow_below_the_sweep(finished: tuple[Place, str]) -> None:
    from mlflow import MlflowClient

    place, _ = finished
    client = MlflowClient(f"sqlite:///{place.folder}/.calm/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "calm"]
    runs = client.search_runs([experiment.experiment_id])
    below: dict[str, list[Any]] = {}
    for run in runs:
        below.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    [top] = below[""]
    assert (top.info.run_name, top.info.status) == ("sweep out", "FINISHED")
    own = [run for run in below[top.info.run_id] if "brierlm" in run.data.metrics]
    assert sorted((run.data.params["calm.learning_rate"], run.data.params["seed"]) for run in own) == [
        ("0.001", "0"),
        ("0.001", "1"),
        ("0.002", "0"),
        ("0.002", "1"),
    ]
    for run in own:
        stages = {stage.info.run_name for stage in below[run.info.run_id]}
        assert {"train-calm", "evaluate"} <= stages
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    assert "results.csv" in {file.path for file in client.list_artifacts(top.info.run_id)}


def test_again_it_makes_the_same_bytes_and_nothing_else(finished: tuple[Place, str]) -> None:
    place, _ = finished
    before, made = place.results(), place.made()
    out, _ = place.sweep()
    assert (place.results(), place.made()) == (before, made)
    assert ": running" not in out


def test_a_run_that_fails_costs_one_line_and_is_tried_again(finished: tuple[Place, str]) -> None:
    place, _ = finished
    before = place.results()
    broken = place.out / place.rows()[1]["evaluation"]
    whole = broken.rename(place.folder / "kept")
    broken.mkdir()
    (broken / "notes.txt").write_text("mine")
    out, err = place.sweep(code=1)
    [line] = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert "2 calm learning_rate=0.001 seed=1: " in line and "holds other files (notes.txt)" in line
    assert err.splitlines()[-1].startswith("error 1 of the runs failed; run the same command again")
    assert [row["state"] for row in place.rows()] == ["done", "failed", "done", "done"]
    assert "1 (1 failed)" in out
    (broken / "notes.txt").unlink()
    broken.rmdir()
    whole.rename(broken)
    place.sweep()
    assert place.results() == before


def test_a_broken_task_costs_those_that_need_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    config: Config = resolve_config({})
    prepare = ("prepare", "--source", str(tmp_path / "nothing.jsonl"))
    tasks = [
        Task("dataset-1", "data set", config, (Step(DatasetFacts, str(tmp_path / "dataset-1/dataset"), prepare),)),
        Task("calm-1", "needs it", config, (Step(EvaluationFacts, str(tmp_path / "x"), ("inspect",)),), ("dataset-1",)),
        Task("calm-2", "alone", config, ()),
    ]
    ended: list[tuple[str, str]] = []
    work = Work(tmp_path, 2, lambda task: {}, lambda task, reason: ended.append((task.name, reason)))
    work.do(tasks, Console(file=(tmp_path / "shown").open("w")))
    assert "nothing.jsonl" in work.failed["dataset-1"]
    assert work.failed["calm-1"] == "what it needs has failed (dataset-1)"
    assert [name for name, _ in ended] == ["calm-2", "dataset-1", "calm-1"]
    assert "alone: cached" in (tmp_path / "shown").read_text()
