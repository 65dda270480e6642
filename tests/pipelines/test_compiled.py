"""The compiled pipeline that is under version control."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.image import IMAGE
from pipelines.compile import TRAIN_PIPELINE, compile_train

SECTIONS = {"data", "tokenizer", "autoencoder", "calm", "transformer", "evaluation", "registry"}

SECTIONS_OF_TASK = {
    "plan-partitions": {"data", "tokenizer"},
    "scan-partition": {"data"},
    "find-duplicates": {"data"},
    "train-tokenizer": {"tokenizer", "data"},
    "tokenize-partition": {"data"},
    "merge-partitions": {"data"},
    "train-autoencoder": {"autoencoder"},
    "train-calm": {"calm"},
    "evaluate": {"evaluation"},
    "train-transformer": {"transformer"},
    "evaluate-2": {"evaluation"},
    "register-model": {"registry"},
    "report": set(),
    "report-2": set(),
}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(TRAIN_PIPELINE.read_text()))


@pytest.fixture(scope="module")
def pipeline(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def dags_of(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    """The root and the bodies of loops and conditions."""
    components = [pipeline["root"], *pipeline["components"].values()]
    return [component["dag"] for component in components if "dag" in component]


def tasks_of(pipeline: dict[str, Any]) -> dict[str, Any]:
    """All tasks that run a component; loops and conditions left out."""
    tasks = {name: task for dag in dags_of(pipeline) for name, task in dag["tasks"].items()}
    return {name: task for name, task in tasks.items() if not name.startswith(("for-loop", "condition"))}


def test_is_what_the_code_compiles_to(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    compile_train(tmp_path / "fresh.yaml")
    fresh = list(yaml.safe_load_all((tmp_path / "fresh.yaml").read_text()))
    assert documents == fresh, "run: python -m pipelines.compile"


def test_every_task_runs_in_our_image_with_nothing_but_its_command(documents: list[dict[str, Any]]) -> None:
    """No environment and no Kubernetes extras: nowhere for a secret to be."""
    assert len(documents) == 1
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == IMAGE
        assert set(executor["container"]) == {"image", "command", "args"}


def test_only_what_looks_at_the_outside_world_is_never_cached(pipeline: dict[str, Any]) -> None:
    uncached = {name for name, task in tasks_of(pipeline).items() if not task["cachingOptions"].get("enableCache")}
    assert uncached == {"plan-partitions", "register-model", "report", "report-2"}


def test_a_stage_gets_its_own_section_of_the_settings_only(pipeline: dict[str, Any]) -> None:
    sections = {name: SECTIONS & set(task["inputs"]["parameters"]) for name, task in tasks_of(pipeline).items()}
    assert sections == SECTIONS_OF_TASK


def test_every_task_has_the_code_version_in_its_cache_key(pipeline: dict[str, Any]) -> None:
    for name, task in tasks_of(pipeline).items():
        assert "code_version" in task["inputs"]["parameters"], name


def test_artifacts_join_the_stages_and_the_plan_alone_hands_on_a_parameter(pipeline: dict[str, Any]) -> None:
    with_parameters = {
        name
        for name, component in pipeline["components"].items()
        if component.get("outputDefinitions", {}).get("parameters")
    }
    assert with_parameters == {"comp-plan-partitions"}


def test_a_tokenizer_that_is_named_is_in_the_key_by_its_content(pipeline: dict[str, Any]) -> None:
    """As the plan, which is never cached, has found it: in a cluster as on this machine."""
    digest = tasks_of(pipeline)["train-tokenizer"]["inputs"]["parameters"]["tokenizer_digest"]
    assert digest == {
        "taskOutputParameter": {"outputParameterKey": "tokenizer_digest", "producerTask": "plan-partitions"}
    }


def test_outputs_are_the_artifacts_of_the_stages(pipeline: dict[str, Any]) -> None:
    assert set(pipeline["root"]["outputDefinitions"]["artifacts"]) == {
        "dataset",
        "autoencoder_model",
        "calm_model",
        "evaluation_report",
        "registration",
    }


def test_a_report_is_written_with_the_baseline_or_without_and_knows_what_was_decided(pipeline: dict[str, Any]) -> None:
    inputs = {name: set(tasks_of(pipeline)[name]["inputs"]["artifacts"]) for name in ("report", "report-2")}
    both = {"dataset", "autoencoder_model", "calm_model", "evaluation_report", "registration"}
    assert inputs == {"report": both | {"baseline_report"}, "report-2": both}
    conditions = [
        task["triggerPolicy"]["condition"]
        for dag in dags_of(pipeline)
        for task in dag["tasks"].values()
        if "triggerPolicy" in task
    ]
    assert [condition.partition("== ")[2] for condition in conditions] == ["true", "false"]


def test_a_run_page_shows_pages_cards_and_numbers(pipeline: dict[str, Any]) -> None:
    """What Kubeflow's own pages show, by the task that makes it."""
    shown: dict[str, set[str]] = {}
    for component, definition in pipeline["components"].items():
        for artifact in definition.get("outputDefinitions", {}).get("artifacts", {}).values():
            title = artifact["artifactType"].get("schemaTitle", "")
            if title in ("system.HTML", "system.Markdown", "system.Metrics"):
                shown.setdefault(component.removeprefix("comp-"), set()).add(title.removeprefix("system."))
    training = {name: {"HTML", "Metrics"} for name in ("train-autoencoder", "train-calm", "train-transformer")}
    assert shown == training | {
        "merge-partitions": {"Markdown"},
        "evaluate": {"HTML", "Metrics"},
        "evaluate-2": {"HTML", "Metrics"},
        "register-model": {"Markdown"},
        "report": {"HTML"},
        "report-2": {"HTML"},
    }
