"""The pipeline `calm-retrain`: `calm-train` again, if there is text that no registered version was trained on."""

from typing import Any

from kfp import dsl

from components.data_processing.find_new_data import find_new_data
from components.image import IMAGE
from pipelines.arguments import defaults_of
from pipelines.dags.pods import Pods
from pipelines.dags.train import calm_train

_DEFAULT = defaults_of("small")


@dsl.pipeline(name="calm-retrain", description="Train, score and register a CALM language model again on new text.")
def calm_retrain(
    data: dict[str, Any] = _DEFAULT["data"],
    tokenizer: dict[str, Any] = _DEFAULT["tokenizer"],
    autoencoder: dict[str, Any] = _DEFAULT["autoencoder"],
    calm: dict[str, Any] = _DEFAULT["calm"],
    train_baseline: bool = _DEFAULT["train_baseline"],
    transformer: dict[str, Any] = _DEFAULT["transformer"],
    evaluation: dict[str, Any] = _DEFAULT["evaluation"],
    registry: dict[str, Any] = _DEFAULT["registry"],
    retraining: dict[str, Any] = {},  # noqa: B006 # Kubeflow copies it
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
) -> None:
    """Train, score and register a CALM language model again, if there is new text; else end.

    Args:
        retraining: How a retraining begins (`RetrainingConfig`); what follows is as in `calm-train`.
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
    look = pods.run(
        find_new_data(
            data=data,
            autoencoder=autoencoder,
            calm=calm,
            registry=registry,
            retraining=retraining,
            code_version=code_version,
        )
    )
    look.set_caching_options(enable_caching=False)  # sources and registry change under their names
    # Kubeflow's local runner finds an output of this name alone.
    with dsl.If(look.outputs["Output"] == True, name="new-data"):  # noqa: E712 # Kubeflow's own form of a condition
        calm_train(
            data=look.outputs["training_data"],
            tokenizer=tokenizer,
            autoencoder=look.outputs["training_autoencoder"],
            calm=look.outputs["training_calm"],
            train_baseline=train_baseline,
            transformer=transformer,
            evaluation=evaluation,
            registry=registry,
            seed=seed,
            code_version=code_version,
            plan_root=plan_root,
            checkpoint_root=checkpoint_root,
            image=image,
            environment=environment,
            credentials=credentials,
            cpu=cpu,
            memory=memory,
            training_cpu=training_cpu,
            training_memory=training_memory,
            accelerator=accelerator,
            accelerators=accelerators,
            node_selector=node_selector,
            tolerations=tolerations,
            trainjob=trainjob,
        )
