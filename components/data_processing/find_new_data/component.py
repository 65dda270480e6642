from typing import Any, NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_new_data(
    data: dict[str, Any],
    autoencoder: dict[str, Any],
    calm: dict[str, Any],
    registry: dict[str, Any],
    retraining: dict[str, Any],
    code_version: str,
    found: dsl.Output[dsl.Markdown],
) -> NamedTuple(  # type: ignore[valid-type] # Kubeflow's form
    "Look",
    [
        ("Output", bool),
        ("training_data", dict[str, Any]),
        ("training_autoencoder", dict[str, Any]),
        ("training_calm", dict[str, Any]),
    ],
):
    """Look for text that the newest registered version was not trained on, and say how to train on it.

    It looks at sources and registry as they are now, so a pipeline must not cache it.

    Args:
        data: Settings of the sources and the shards (`DataConfig`).
        autoencoder: Settings of the autoencoder and its training (`AutoencoderConfig`).
        calm: Settings of the language model and its training (`CalmConfig`).
        registry: Settings of the registry (`RegistryConfig`).
        retraining: How a retraining begins (`RetrainingConfig`).
        code_version: Version of the code.
        found: What has been found, on one line.

    Returns:
        Output: Whether there is such text.
        training_data: The settings `data`, which extend the version's dataset.
        training_autoencoder: The settings `autoencoder`, from whatever weights a training starts.
        training_calm: The settings `calm`, likewise.
    """
    from calm_core.config import DataConfig, RegistryConfig, RetrainingConfig
    from calm_core.registry.retraining import look_for_new_data
    from components.body import settings, show, stage
    from components.quoting import quoted

    with stage(code_version):
        look = look_for_new_data(
            settings(DataConfig, data), settings(RegistryConfig, registry), settings(RetrainingConfig, retraining)
        )
        print(look.told, flush=True)
        show(found, look.told + "\n")
        extends = quoted({"extends": look.extends}) if look.extends else {}
        start = quoted({"initial_weights": look.initial_weights}) if look.initial_weights else {}
        return look.is_new, data | extends, autoencoder | start, calm | start
