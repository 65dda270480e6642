"""The pipeline `calm-train`: from sources of text to a registered CALM language model."""

from dataclasses import replace
from typing import Any, NamedTuple

from kfp import dsl

from components.data_processing.find_duplicates import find_duplicates
from components.data_processing.merge_partitions import merge_partitions
from components.data_processing.plan_partitions import plan_partitions
from components.data_processing.scan_partition import scan_partition
from components.data_processing.tokenize_partition import tokenize_partition
from components.data_processing.train_tokenizer import train_tokenizer
from components.deployment.register_model import register_model
from components.evaluation.evaluate import evaluate
from components.evaluation.report import report
from components.image import IMAGE
from components.training.train_autoencoder import train_autoencoder
from components.training.train_calm import train_calm
from components.training.train_transformer import train_transformer
from pipelines.arguments import defaults_of
from pipelines.dags.pods import Pods

_DEFAULT = defaults_of("small")
_AT_ONCE = 16
"""Partitions that are prepared at a time: each is three pods."""


class Outputs(NamedTuple):
    """The artifacts of a finished run."""

    dataset: dsl.Dataset
    autoencoder_model: dsl.Model
    calm_model: dsl.Model
    evaluation_report: dsl.Artifact
    registration: dsl.Artifact


@dsl.pipeline(name="calm-train", description="Train, score and register a CALM language model.")
def calm_train(
    data: dict[str, Any] = _DEFAULT["data"],
    tokenizer: dict[str, Any] = _DEFAULT["tokenizer"],
    autoencoder: dict[str, Any] = _DEFAULT["autoencoder"],
    calm: dict[str, Any] = _DEFAULT["calm"],
    train_baseline: bool = _DEFAULT["train_baseline"],
    transformer: dict[str, Any] = _DEFAULT["transformer"],
    evaluation: dict[str, Any] = _DEFAULT["evaluation"],
    registry: dict[str, Any] = _DEFAULT["registry"],
    seed: int = _DEFAULT["seed"],
    code_version: str = "",
    plan_root: str = "",
    checkpoint_root: str = "",
    image: str = IMAGE,
    environment: str = _DEFAULT["environment"],
    credentials: str = _DEFAULT["credentials"],
    cpu: str = _DEFAULT["cpu"],
    memory: str = _DEFAULT["memory"],
    training_cpu: str = _DEFAULT["training_cpu"],
    training_memory: str = _DEFAULT["training_memory"],
    accelerator: str = _DEFAULT["accelerator"],
    accelerators: str = _DEFAULT["accelerators"],
    node_selector: dict[str, Any] = _DEFAULT["node_selector"],
    tolerations: list[Any] = _DEFAULT["tolerations"],
    trainjob: dict[str, Any] = _DEFAULT["trainjob"],
) -> Outputs:
    """Train, score and register a CALM language model.

    A stage gets its own section of the settings only, so that a changed setting reruns only what depends on it.
    Defaults are those of the profile `small`; `data` needs `sources`.

    Args:
        data: Sources of text and the shape of the shards.
        tokenizer: Settings of the tokenizer.
        autoencoder: Settings of the autoencoder and its training.
        calm: Settings of the language model and its training.
        train_baseline: Whether the token-level Transformer is trained and scored too.
        transformer: Settings of that Transformer and its training.
        evaluation: Settings of the scores.
        registry: Settings of the registry.
        seed: Seed of everything random.
        code_version: Version of the code, part of every cache key; empty where the image is named by digest.
        plan_root: URL of the folder of plans: which bytes of the sources each partition holds; empty: where Kubeflow
            keeps its artifacts.
        checkpoint_root: URL of the folder of checkpoints; empty: likewise.
        image: What all tasks run in.
        environment: ConfigMap with the storage's endpoint and MLflow's URI; passed over if there is none.
        credentials: Secret with the storage's keys and MLflow's user; passed over if there is none.
        cpu, memory: Of a task that prepares data, registers or reports, as Kubernetes writes them.
        training_cpu, training_memory: Of a task that trains or evaluates.
        accelerator: Resource of nodes with accelerators.
        accelerators: How many a task that trains or evaluates gets, as text: Kubeflow's form.
        node_selector: Labels of the nodes for tasks that train or evaluate.
        tolerations: Taints that these tolerate.
        trainjob: What the nodes of a training over several get (`TrainJobSettings`); what is not said is as the pod of
            the task that waits for them.
    """
    pods = Pods(image=image, environment=environment, credentials=credentials, cpu=cpu, memory=memory)
    trainers = replace(
        pods,
        cpu=training_cpu,
        memory=training_memory,
        accelerator=accelerator,
        accelerators=accelerators,
        node_selector=node_selector,
        tolerations=tolerations,
    )
    plan = pods.run(
        plan_partitions(
            data=data,
            tokenizer=tokenizer,
            autoencoder=autoencoder,
            calm=calm,
            transformer=transformer,
            plan_root=plan_root,
            code_version=code_version,
        )
    )
    plan.set_caching_options(enable_caching=False)  # what is named by path can change
    partitions = plan.outputs["Output"]  # Kubeflow's local runner loops over an output of this name alone

    with dsl.ParallelFor(partitions, parallelism=_AT_ONCE) as partition:
        scan = pods.run(scan_partition(partition=partition, data=data, code_version=code_version))
    duplicates = pods.run(
        find_duplicates(data=data, code_version=code_version, scans=dsl.Collected(scan.outputs["scan"]))
    )
    bpe = pods.run(
        train_tokenizer(
            plan=plan.outputs["plan"],
            tokenizer=tokenizer,
            data=data,
            tokenizer_digest=plan.outputs["tokenizer_digest"],
            code_version=code_version,
        )
    )

    with dsl.ParallelFor(partitions, parallelism=_AT_ONCE) as partition:
        tokens = pods.run(
            tokenize_partition(
                partition=partition,
                data=data,
                code_version=code_version,
                tokenizer_model=bpe.outputs["tokenizer_model"],
                duplicates=duplicates.outputs["duplicates"],
            )
        )
    dataset = pods.run(
        merge_partitions(
            data=data,
            plan=plan.outputs["plan"],
            code_version=code_version,
            scans=dsl.Collected(scan.outputs["scan"]),
            shards=dsl.Collected(tokens.outputs["shards"]),
            duplicates=duplicates.outputs["duplicates"],
            tokenizer_model=bpe.outputs["tokenizer_model"],
        )
    ).outputs["dataset"]

    autoencoder_model = trainers.run(
        train_autoencoder(
            autoencoder=autoencoder,
            seed=seed,
            checkpoint_root=checkpoint_root,
            code_version=code_version,
            trainjob=trainjob,
            start=plan.outputs["autoencoder_start"],
            dataset=dataset,
        )
    ).outputs["autoencoder_model"]
    calm_model = trainers.run(
        train_calm(
            calm=calm,
            seed=seed,
            checkpoint_root=checkpoint_root,
            code_version=code_version,
            trainjob=trainjob,
            start=plan.outputs["calm_start"],
            dataset=dataset,
            autoencoder_model=autoencoder_model,
        )
    ).outputs["calm_model"]
    evaluation_report = trainers.run(
        evaluate(
            evaluation=evaluation,
            seed=seed,
            checkpoint_root=checkpoint_root,
            code_version=code_version,
            dataset=dataset,
            model=calm_model,
            autoencoder_model=autoencoder_model,
        )
    ).outputs["evaluation_report"]
    registration = pods.run(
        register_model(
            registry=registry,
            code_version=code_version,
            autoencoder_model=autoencoder_model,
            calm_model=calm_model,
            evaluation_report=evaluation_report,
            dataset=dataset,
        )
    )
    registration.set_caching_options(enable_caching=False)  # the registry can lose what the cache remembers

    made = {
        "code_version": code_version,
        "dataset": dataset,
        "autoencoder_model": autoencoder_model,
        "calm_model": calm_model,
        "evaluation_report": evaluation_report,
        "registration": registration.outputs["registration"],
    }
    # A report in each branch, since Kubeflow's local runner hands on no artifact of a branch, not even by dsl.OneOf.
    # Neither is cached: what became of the model and how long it took is of this run.
    with dsl.If(train_baseline == True, name="baseline"):  # noqa: E712 # Kubeflow's own form of a condition
        transformer_model = trainers.run(
            train_transformer(
                transformer=transformer,
                seed=seed,
                checkpoint_root=checkpoint_root,
                code_version=code_version,
                trainjob=trainjob,
                start=plan.outputs["transformer_start"],
                dataset=dataset,
            )
        ).outputs["transformer_model"]
        baseline_report = trainers.run(
            evaluate(
                evaluation=evaluation,
                seed=seed,
                checkpoint_root=checkpoint_root,
                code_version=code_version,
                dataset=dataset,
                model=transformer_model,
            )
        ).outputs["evaluation_report"]
        pods.run(report(**made, baseline_report=baseline_report)).set_caching_options(enable_caching=False)
    with dsl.If(train_baseline == False, name="no-baseline"):  # noqa: E712
        pods.run(report(**made)).set_caching_options(enable_caching=False)
    return Outputs(dataset, autoencoder_model, calm_model, evaluation_report, registration.outputs["registration"])
