"""`calm schedule` against a server that holds every request against Kubeflow's models."""

import json
import threading
from typing import Any

import pytest

from pipelines.cluster import schedule
from pipelines.cluster.client import connect
from pipelines.cluster.submit import Package
from pipelines.compile import RETRAIN_PIPELINE
from tests.cluster.conftest import Call
from tests.cluster.servers import Handler, Kubeflow, refuse

CREATE = (
    *("schedule", "create", "--cron", "0 0 3 * * *", "--source", "s3://bucket/a.jsonl"),
    *("--pipeline-root", "s3://bucket/root", "--profile", "tiny"),
    *("--set", f"cluster.image=registry/calm@sha256:{'0' * 64}"),
)


def test_a_schedule_runs_the_newest_version_one_at_a_time(kubeflow: Kubeflow, call: Call) -> None:
    code, out, err = call(*CREATE, "--host", kubeflow.url)
    assert (code, err) == (0, "")
    assert out.startswith("calm-retrain: created, 0 0 3 * * *\n")
    [made] = kubeflow.schedules
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (made["max_concurrency"], made["no_catchup"], made["status"]) == ("1", True, "ENABLED")
    assert made["pipeline_version_reference"] == {"pipeline_id": kubeflow.pipelines[0]["pipeline_id"]}
    assert made["service_account"] == "calm-pipeline"
    assert len(kubeflow.versions) == 1
    assert kubeflow.pipelines[0]["name"] == "calm-retrain"
    assert made["runtime_config"]["parameters"]["retraining"] == {"start": "scratch"}


def test_the_codes_version_is_not_frozen_in(kubeflow: Kubeflow, call: Call) -> None:
    for image in ("registry/calm:1", f"registry/calm@sha256:{'0' * 64}"):
        code, _, err = call(*CREATE, "--host", kubeflow.url, "--set", f"cluster.image={image}")
        assert (code, "named by a tag" in err) == (0, image.endswith(":1"))
        assert "code_version" not in kubeflow.schedules[0]["runtime_config"]["parameters"]


def test_the_same_command_twice_changes_nothing(kubeflow: Kubeflow, call: Call) -> None:
    call(*CREATE, "--host", kubeflow.url)
    before = json.dumps(kubeflow.schedules)
    code, out, _ = call(*CREATE, "--host", kubeflow.url)
    assert (code, json.dumps(kubeflow.schedules)) == (0, before)
    assert "there already, and as it should be" in out


def test_another_form_replaces_it_and_its_runs_go_on(kubeflow: Kubeflow, call: Call) -> None:
    call(*CREATE, "--host", kubeflow.url)
    call("schedule", "pause", "--host", kubeflow.url)
    old = kubeflow.schedules[0]["recurring_run_id"]
    code, out, _ = call(*CREATE, "--set", "seed=5", "--host", kubeflow.url)
    assert code == 0
    assert "it is paused: calm schedule resume calm-retrain" in out
    [made] = kubeflow.schedules
    assert made["recurring_run_id"] != old
    assert made["runtime_config"]["parameters"]["seed"] == 5
    assert made["status"] == "DISABLED"
    [(_, _, query, _)] = [each for each in kubeflow.requests if each[0] == "DELETE"]
    assert query == {"propagation_policy": "ORPHAN"}


def test_the_new_one_is_there_before_the_old_one_goes(kubeflow: Kubeflow, call: Call) -> None:
    call(*CREATE, "--host", kubeflow.url)
    kubeflow.fail("DELETE", ".*/recurringruns/.*", refuse(503))
    assert call(*CREATE, "--set", "seed=5", "--host", kubeflow.url)[0] == 1
    assert len(kubeflow.schedules) == 2
    assert call(*CREATE, "--set", "seed=5", "--host", kubeflow.url)[0] == 0
    assert [each["runtime_config"]["parameters"]["seed"] for each in kubeflow.schedules] == [5]


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)], ids=["the same", "two forms"])
def test_two_who_create_at_once_leave_one(seeds: tuple[int, int], kubeflow: Kubeflow) -> None:
    both = threading.Barrier(2)
    waited: set[int] = set()

    def meet(request: Handler) -> bool:
        if request.command == "POST" and request.place.endswith("/recurringruns") and id(request) not in waited:
            waited.add(id(request))
            kubeflow.lock.release()
            try:
                both.wait(timeout=20)
            finally:
                kubeflow.lock.acquire()
        return False

    clusters = [connect(kubeflow.url) for _ in range(2)]
    package = Package(RETRAIN_PIPELINE)
    values = {name: _value_of(spec) for name, spec in package.parameters.items()}
    schedule.create(clusters[0], package, "another", "0 0 1 * * *", values, "")
    kubeflow.faults.append(meet)
    told: list[Any] = []

    def create(number: int) -> None:
        try:
            told.append(
                schedule.create(
                    clusters[number], package, "nightly", "0 0 3 * * *", values | {"seed": seeds[number]}, ""
                )
            )
        except Exception as error:
            told.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each["display_name"] for each in kubeflow.schedules].count("nightly") == 1
    assert len(told) == 2
    for each in told:
        assert isinstance(each, tuple) or "at the same time, which stands" in str(each)


def _value_of(spec: dict[str, Any]) -> Any:
    return {"STRUCT": {}, "STRING": "", "NUMBER_INTEGER": 0, "BOOLEAN": False, "LIST": []}[spec["parameterType"]]


def test_pause_resume_list_and_delete_go_by_name(kubeflow: Kubeflow, call: Call) -> None:
    kubeflow.most = 1  # pages of one
    for name in ("nightly", "weekly"):
        call(*CREATE, "--name", name, "--host", kubeflow.url)
    assert call("schedule", "pause", "nightly", "--host", kubeflow.url)[0] == 0
    listed = json.loads(call("schedule", "list", "--json", "--host", kubeflow.url)[1])
    assert [(each["name"], each["paused"]) for each in listed] == [("weekly", False), ("nightly", True)]
    shown = call("schedule", "list", "--host", kubeflow.url)[1].splitlines()
    assert [line.split("  ")[0] for line in shown[1:]] == ["weekly", "nightly"]
    assert call("schedule", "resume", "nightly", "--host", kubeflow.url)[0] == 0
    assert kubeflow.schedules[0]["status"] == "ENABLED"
    assert call("schedule", "delete", "nightly", "--host", kubeflow.url)[0] == 0
    assert [each["display_name"] for each in kubeflow.schedules] == ["weekly"]


@pytest.mark.parametrize("what", ["pause", "resume", "delete"])
def test_a_name_that_is_not_there_is_one_line(what: str, kubeflow: Kubeflow, call: Call) -> None:
    code, _, err = call("schedule", what, "nightly", "--host", kubeflow.url)
    assert (code, err) == (1, "error nightly: there is no schedule of this name; `calm schedule list` lists them\n")
    assert call("schedule", "list", "--host", kubeflow.url)[1].startswith("there is no schedule")


CRONS = {
    "0 3 * * *": "has 5 fields, Kubeflow's six: second minute hour day month weekday; did you mean '0 0 3 * * *'?",
    "daily": "'daily' has 1 fields",
    "0 0 0 3 * * *": "has 7 fields",
}


@pytest.mark.parametrize("cron", CRONS)
def test_a_cron_of_other_fields_is_refused(cron: str, kubeflow: Kubeflow, call: Call) -> None:
    """Kubeflow would read five fields as second to month, and run once an hour or more."""
    code, _, err = call(*CREATE[:2], "--cron", cron, *CREATE[4:], "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (2, 1)
    assert CRONS[cron] in err
    assert kubeflow.requests == []


def test_what_kubeflow_says_of_a_cron_is_passed_on(kubeflow: Kubeflow, call: Call) -> None:
    kubeflow.fail("POST", ".*/recurringruns", refuse(400, "Schedule cron is not a supported format"))
    code, _, err = call(*CREATE[:2], "--cron", "0 0 99 * * *", *CREATE[4:], "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "it refuses this (400: Schedule cron is not a supported format) (creating the schedule)" in err
