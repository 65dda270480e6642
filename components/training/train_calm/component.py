from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_calm(
    calm: dict[str, Any],
    seed: int,
    checkpoint_root: str,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    autoencoder_model: dsl.Input[dsl.Model],
    calm_model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    trainjob: dict[str, Any] = {},  # noqa: B006 # Kubeflow copies it
    start: str = "",
) -> None:
    """Train the CALM language model, which predicts the vector of the next chunk.

    Args:
        calm: Settings of the model and its training (`CalmConfig`).
        seed: Seed of everything random.
        checkpoint_root: URL of the folder where an interrupted training finds its own checkpoints.
        code_version: Version of the code, part of the cache key.
        dataset: The dataset of `merge_partitions`.
        autoencoder_model: The model of `train_autoencoder`.
        calm_model: The trained weights and their settings.
        metrics: How good the model is on held-out text, how large, and how quickly it was trained.
        page: The learning curves.
        trainjob: How the nodes of a TrainJob are made, where the settings ask for one (`TrainJobSettings`); unset,
            like this task's own pod.
        start: What `plan_partitions` says of the weights that training starts from.
    """
    from calm_core.config import CalmConfig
    from calm_core.report.training import numbers, training_page
    from calm_core.training.stage import train
    from components.body import describe, log_metrics, place_of, root_of, settings, show, stage
    from components.training.trainjob import launcher_of

    with stage(code_version):
        config = settings(CalmConfig, calm)
        artifact = train(
            config,
            dataset.uri,
            place_of(calm_model),
            seed=seed,
            checkpoint_root=root_of(checkpoint_root, calm_model, "checkpoint"),
            autoencoder_uri=autoencoder_model.uri,
            initial_digest=start,
            launcher=launcher_of(config, trainjob),
        )
        describe(calm_model, artifact)
        log_metrics(metrics, numbers(artifact))
        show(page, training_page(artifact))
