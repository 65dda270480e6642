"""The compiled pipeline that is under version control."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from calm_core.config import resolve_config
from components.image import IMAGE
from pipelines.compile import RETRAIN_PIPELINE, TRAIN_PIPELINE, compile_retrain, compile_train
from pipelines.profiles import load

SECTIONS = {"data", "tokenizer", "autoencoder", "calm", "transformer", "evaluation", "registry"}

SECTIONS_OF_TASK = {
    "plan-partitions": {"data", "tokenizer", "autoencoder", "calm", "transformer"},
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


def test_the_retraining_is_what_the_code_compiles_to_and_has_the_training_in_it(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Task by task as it is compiled alone, with what its pods get; before it, one task that is never cached."""
    for name in ("fresh.yaml", "again.yaml"):
        compile_retrain(tmp_path / name)
    assert (tmp_path / "fresh.yaml").read_bytes() == (tmp_path / "again.yaml").read_bytes()
    retraining = list(yaml.safe_load_all(RETRAIN_PIPELINE.read_text()))
    assert list(yaml.safe_load_all((tmp_path / "fresh.yaml").read_text())) == retraining, "python -m pipelines.compile"
    (training, pods), (whole, all_pods) = documents, retraining
    assert training["components"].items() <= whole["components"].items()
    assert whole["components"].keys() - training["components"].keys() == {
        "comp-find-new-data",
        "comp-condition-1",
        "comp-calm-train",
    }
    executors = [each["deploymentSpec"]["executors"] for each in (training, whole)]
    platforms = [each["platforms"]["kubernetes"]["deploymentSpec"]["executors"] for each in (pods, all_pods)]
    for alone, within in (executors, platforms):
        assert alone.items() <= within.items()
        assert within.keys() - alone.keys() == {"exec-find-new-data"}
    assert training["root"]["dag"]["tasks"] == whole["components"]["comp-calm-train"]["dag"]["tasks"]
    parameters = [each["root"]["inputDefinitions"]["parameters"] for each in (training, whole)]
    assert parameters[1] == parameters[0] | {"retraining": parameters[1]["retraining"]}
    look, new = (whole["root"]["dag"]["tasks"][name] for name in ("find-new-data", "condition-1"))
    assert look["cachingOptions"] == {}
    condition = "inputs.parameter_values['pipelinechannel--find-new-data-Output'] == true"
    assert new["triggerPolicy"]["condition"] == condition


def test_every_task_runs_in_our_image_and_nothing_is_set_that_could_be_a_secret(pipeline: dict[str, Any]) -> None:
    assert pipeline["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"] == IMAGE
    for executor in pipeline["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == "{{$.inputs.parameters['pipelinechannel--image']}}"
        assert set(executor["container"]) == {"image", "command", "args", "resources"}


def test_a_secret_is_a_name_that_a_parameter_gives(documents: list[dict[str, Any]], pipeline: dict[str, Any]) -> None:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == pipeline["deploymentSpec"]["executors"].keys()
    for executor in executors.values():
        [secret], [environment] = executor["secretAsEnv"], executor["configMapAsEnv"]
        assert secret["secretNameParameter"]["componentInputParameter"].endswith("credentials")
        assert environment["configMapNameParameter"]["componentInputParameter"].endswith("environment")
        assert secret["optional"] and environment["optional"]
        variables = {each["envVar"]: each["secretKey"] for each in secret["keyToEnv"]}
        variables |= {each["envVar"]: each["configMapKey"] for each in environment["keyToEnv"]}
        assert all(name.removeprefix("CALM_") == key or key == "AWS_REGION" for name, key in variables.items())
        assert not any(name.startswith("MLFLOW_") for name in variables)  # those are set by Kubeflow's MLflow plugin
        assert executor["securityContext"] == {"runAsNonRoot": True}


def test_what_trains_or_evaluates_gets_accelerators_their_nodes_and_shared_memory(
    documents: list[dict[str, Any]], pipeline: dict[str, Any]
) -> None:
    kubernetes = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    trains = {f"exec-{name}" for name in tasks_of(pipeline) if name.startswith(("train-", "evaluate"))}
    trains -= {"exec-train-tokenizer"}
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        assert ("accelerator" in executor["container"]["resources"]) == (name in trains), name
        assert ({"nodeSelector", "tolerations"} <= kubernetes[name].keys()) == (name in trains), name
        mounted = {mount["mountPath"] for mount in kubernetes[name]["emptyDirMounts"]}
        assert mounted == ({"/tmp", "/dev/shm"} if name in trains else {"/tmp"}), name


def test_all_that_a_loop_or_a_condition_needs_is_handed_in(pipeline: dict[str, Any]) -> None:
    """Kubeflow's compiler forgets the parameters of resources there."""
    dags = {"root": pipeline["root"], **{name: each for name, each in pipeline["components"].items() if "dag" in each}}
    for component, definition in dags.items():
        known = definition["inputDefinitions"]["parameters"].keys()
        for name, task in definition["dag"]["tasks"].items():
            for value in task.get("inputs", {}).get("parameters", {}).values():
                assert value.get("componentInputParameter", next(iter(known))) in known, (component, name, value)
                if constant := value.get("runtimeValue", {}).get("constant"):
                    assert (
                        re.fullmatch(r"\{\{\$\.inputs\.parameters\['(.+)'\]\}\}", constant)[1]
                        in task["inputs"][  # type: ignore[index]
                            "parameters"
                        ]
                    )


def test_every_task_has_a_deadline_and_is_tried_again_until_then(
    documents: list[dict[str, Any]], pipeline: dict[str, Any]
) -> None:
    """Kubeflow's deadline for retried pods is the longest pause, by default an hour."""
    kubernetes = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, task in tasks_of(pipeline).items():
        executor = pipeline["components"][task["componentRef"]["name"]]["executorLabel"]
        seconds = int(kubernetes[executor]["activeDeadlineSeconds"])
        days = 30 if name.startswith(("train-", "evaluate")) and name != "train-tokenizer" else 3
        assert seconds == days * 86400, name
        assert task["retryPolicy"]["backoffMaxDuration"] == f"{seconds}s", name


def test_sources_are_all_that_has_to_be_named(pipeline: dict[str, Any]) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert [name for name, each in parameters.items() if "defaultValue" not in each] == []
    defaults = {name: each["defaultValue"] for name, each in parameters.items()}
    defaults["data"]["sources"] = ["s3://bucket/texts/*.jsonl"]
    sections = {name: defaults[name] for name in SECTIONS}
    assert resolve_config(sections) == resolve_config(load("small"), ["data.sources=[s3://bucket/texts/*.jsonl]"])


def test_no_default_of_a_pod_is_empty(pipeline: dict[str, Any]) -> None:
    """Kubeflow refuses empty names and quantities."""
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    empty = {name for name, each in parameters.items() if each["defaultValue"] == ""}
    assert empty == {"code_version", "plan_root", "checkpoint_root"}


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


@pytest.mark.parametrize("kind", ["autoencoder", "calm", "transformer"])
def test_weights_that_are_named_are_in_the_key_by_their_content(kind: str, pipeline: dict[str, Any]) -> None:
    """Likewise: an alias may point to another version, and an artifact be replaced."""
    [(how, found)] = tasks_of(pipeline)[f"train-{kind}"]["inputs"]["parameters"]["start"].items()
    if how == "componentInputParameter":  # into the condition of the baseline
        condition = next(dag["tasks"] for dag in dags_of(pipeline) if "condition-3" in dag["tasks"])["condition-3"]
        found = condition["inputs"]["parameters"][found]["taskOutputParameter"]
    assert found == {"outputParameterKey": f"{kind}_start", "producerTask": "plan-partitions"}


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
        "plan-partitions": {"Metrics"},
        "merge-partitions": {"Markdown"},
        "evaluate": {"HTML", "Metrics"},
        "evaluate-2": {"HTML", "Metrics"},
        "register-model": {"Markdown"},
        "report": {"HTML"},
        "report-2": {"HTML"},
    }
