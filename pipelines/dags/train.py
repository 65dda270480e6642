"""The pipeline `calm-train`: from sources of text to a registered CALM language model."""

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
from components.training.train_autoencoder import train_autoencoder
from components.training.train_calm import train_calm
from components.training.train_transformer import train_transformer


class Outputs(NamedTuple):
    """The artifacts of a finished run."""

    dataset: dsl.Dataset
    autoencoder_model: dsl.Model
    calm_model: dsl.Model
    evaluation_report: dsl.Artifact
    registration: dsl.Artifact


@dsl.pipeline(name="calm-train", description="Train, score and register a CALM language model.")
def calm_train(
    data: dict[str, Any],
    tokenizer: dict[str, Any],
    autoencoder: dict[str, Any],
    calm: dict[str, Any],
    train_baseline: bool,
    transformer: dict[str, Any],
    evaluation: dict[str, Any],
    registry: dict[str, Any],
    seed: int,
    code_version: str,
    plan_root: str,
    checkpoint_root: str,
) -> Outputs:
    """Train, score and register a CALM language model.

    A stage gets its own section of the settings only, so that a changed setting reruns only what depends on it.

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
        code_version: Version of the code, part of every cache key.
        plan_root: URL of the folder of plans: which bytes of the sources each partition holds.
        checkpoint_root: URL of the folder of checkpoints.
    """
    plan = plan_partitions(data=data, tokenizer=tokenizer, plan_root=plan_root, code_version=code_version)
    plan.set_caching_options(enable_caching=False)  # what is named by path can change
    partitions = plan.outputs["Output"]  # Kubeflow's local runner loops over an output of this name alone

    with dsl.ParallelFor(partitions) as partition:
        scan = scan_partition(partition=partition, data=data, code_version=code_version)
    duplicates = find_duplicates(data=data, code_version=code_version, scans=dsl.Collected(scan.outputs["scan"]))
    bpe = train_tokenizer(
        partitions=partitions,
        tokenizer=tokenizer,
        data=data,
        tokenizer_digest=plan.outputs["tokenizer_digest"],
        code_version=code_version,
    )

    with dsl.ParallelFor(partitions) as partition:
        tokens = tokenize_partition(
            partition=partition,
            data=data,
            code_version=code_version,
            tokenizer_model=bpe.outputs["tokenizer_model"],
            duplicates=duplicates.outputs["duplicates"],
        )
    dataset = merge_partitions(
        data=data,
        partitions=partitions,
        code_version=code_version,
        scans=dsl.Collected(scan.outputs["scan"]),
        shards=dsl.Collected(tokens.outputs["shards"]),
        duplicates=duplicates.outputs["duplicates"],
        tokenizer_model=bpe.outputs["tokenizer_model"],
    ).outputs["dataset"]

    autoencoder_model = train_autoencoder(
        autoencoder=autoencoder,
        seed=seed,
        checkpoint_root=checkpoint_root,
        code_version=code_version,
        dataset=dataset,
    ).outputs["autoencoder_model"]
    calm_model = train_calm(
        calm=calm,
        seed=seed,
        checkpoint_root=checkpoint_root,
        code_version=code_version,
        dataset=dataset,
        autoencoder_model=autoencoder_model,
    ).outputs["calm_model"]
    evaluation_report = evaluate(
        evaluation=evaluation,
        seed=seed,
        checkpoint_root=checkpoint_root,
        code_version=code_version,
        dataset=dataset,
        model=calm_model,
        autoencoder_model=autoencoder_model,
    ).outputs["evaluation_report"]
    registration = register_model(
        registry=registry,
        code_version=code_version,
        autoencoder_model=autoencoder_model,
        calm_model=calm_model,
        evaluation_report=evaluation_report,
        dataset=dataset,
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
        transformer_model = train_transformer(
            transformer=transformer,
            seed=seed,
            checkpoint_root=checkpoint_root,
            code_version=code_version,
            dataset=dataset,
        ).outputs["transformer_model"]
        baseline_report = evaluate(
            evaluation=evaluation,
            seed=seed,
            checkpoint_root=checkpoint_root,
            code_version=code_version,
            dataset=dataset,
            model=transformer_model,
        ).outputs["evaluation_report"]
        report(**made, baseline_report=baseline_report).set_caching_options(enable_caching=False)
    with dsl.If(train_baseline == False, name="no-baseline"):  # noqa: E712
        report(**made).set_caching_options(enable_caching=False)
    return Outputs(dataset, autoencoder_model, calm_model, evaluation_report, registration.outputs["registration"])
