from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    registry: dict[str, Any],
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    autoencoder_model: dsl.Input[dsl.Model],
    calm_model: dsl.Input[dsl.Model],
    evaluation_report: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
) -> None:
    """Register the model in MLflow, with its lineage; it becomes champion if it is better than the present one.

    Args:
        registry: Settings of the registry (`RegistryConfig`).
        code_version: Version of the code, part of the cache key.
        dataset: The dataset of `evaluate`, on which a champion is scored that was not scored like the model.
        autoencoder_model: The model of `train_autoencoder`.
        calm_model: The model of `train_calm`.
        evaluation_report: The scores of `evaluate`.
        registration: Name and version of the registered model, and whether and why it became champion.
    """
    from calm_core.config import RegistryConfig
    from calm_core.registry.stage import register_model
    from components.body import describe, settings, stage

    with stage(code_version):
        artifact = register_model(
            settings(RegistryConfig, registry),
            calm_model.uri,
            evaluation_report.uri,
            registration.uri,
            dataset_uri=dataset.uri,
            autoencoder_uri=autoencoder_model.uri,
        )
        facts = artifact.facts
        describe(registration, artifact, {"model": f"{facts.model_name} version {facts.version}; {facts.reason}"})
