from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    registry: dict[str, Any],
    code_version: str,
    autoencoder_model: dsl.Input[dsl.Model],
    calm_model: dsl.Input[dsl.Model],
    evaluation_report: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    registration: dsl.Output[dsl.Artifact],
    decision: dsl.Output[dsl.Markdown],
) -> None:
    """Register the model in MLflow, with its lineage; it becomes champion if it is better than the present one.

    Args:
        registry: Settings of the registry (`RegistryConfig`).
        code_version: Version of the code, part of the cache key.
        autoencoder_model: The model of `train_autoencoder`.
        calm_model: The model of `train_calm`.
        evaluation_report: The scores of `evaluate`.
        dataset: The dataset, on which a champion is scored that has not been.
        registration: Name and version of the registered model, and whether its alias points to it.
        decision: Whether it is the champion, and why.
    """
    from calm_core.config import RegistryConfig
    from calm_core.registry.stage import register_model
    from calm_core.report.cards import decision_card
    from components.body import describe, place_of, settings, show, stage

    with stage(code_version):
        artifact = register_model(
            settings(RegistryConfig, registry),
            calm_model.uri,
            evaluation_report.uri,
            place_of(registration),
            autoencoder_uri=autoencoder_model.uri,
            dataset_uri=dataset.uri,
        )
        facts = artifact.facts
        describe(registration, artifact, {"model": f"{facts.model_name} version {facts.version}; {facts.reason}"})
        show(decision, decision_card(facts))
