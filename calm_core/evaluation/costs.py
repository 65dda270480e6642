"""What a model has cost to train, and what it costs to use, from the manifests alone."""

from calm_core.config import AutoencoderConfig, TrainingConfig
from calm_core.errors import ArtifactError
from calm_core.scaling import cost
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts, TrainingCost
from calm_core.weights.load import settings_of


def costs(
    model: Artifact[ModelFacts], autoencoder: Artifact[AutoencoderFacts] | None = None
) -> dict[str, TrainingCost]:
    """What each model of an evaluation has taken to train, by its kind, in the order of training.

    Args:
        model: A language model.
        autoencoder: The one that a CALM model was trained on; None of other kinds.

    Returns:
        Nothing of a model that was trained elsewhere: nobody here knows. Of a teacher, "teacher", what it has added:
        its own training, and its passes over what its student has read.

    Raises:
        ArtifactError: A manifest's settings are not understood, or are not those of its facts.
    """
    trained = [(model, autoencoder)] if autoencoder is None else [(autoencoder, None), (model, autoencoder)]
    found = {one.facts.kind: _cost(one, beside) for one, beside in trained if one.facts.trained_tokens is not None}
    facts = model.facts
    if isinstance(facts, CalmFacts) and facts.teacher_flops is not None:
        found["teacher"] = TrainingCost(flops=facts.teacher_flops + (facts.teacher_training_flops or 0))
    return found


def inference_flops_per_token(
    model: Artifact[ModelFacts], autoencoder: Artifact[AutoencoderFacts] | None, context_length: int
) -> float:
    """Operations of one generated token, as `calm estimate` counts them.

    Args:
        model: Of any kind, trained here or elsewhere.
        autoencoder: The one that a CALM model was trained on; None of other kinds.
        context_length: Tokens of the context that it is generated in.

    Raises:
        ArtifactError: A manifest's settings are not understood.
    """
    return cost.inference_flops_per_token(
        settings_of(model, _settings_type(model)), _settings(autoencoder), model.facts.vocab_size, context_length
    )


def _cost(model: Artifact[ModelFacts], autoencoder: Artifact[AutoencoderFacts] | None) -> TrainingCost:
    facts, config = model.facts, settings_of(model, _settings_type(model))
    tokens = facts.trained_tokens
    assert tokens is not None
    sequence_length, rest = divmod(tokens, config.steps * config.global_batch_size)
    if rest or not sequence_length:
        raise ArtifactError(
            f"{model.uri}: its {tokens:,} trained tokens are not those of {config.steps:,} steps of "
            f"{config.global_batch_size:,} sequences; train it again"
        )
    flops = cost.training_flops_per_token(config, _settings(autoencoder), facts.vocab_size, sequence_length)
    return TrainingCost(
        flops=flops * tokens,
        tokens=tokens,
        seconds=facts.seconds,
        accelerator_seconds=facts.accelerator_seconds,
        energy_joules=facts.energy_joules,
    )


def _settings_type(model: Artifact[ModelFacts]) -> type[TrainingConfig]:
    return TrainingConfig.of_kind[model.facts.kind]


def _settings(autoencoder: Artifact[AutoencoderFacts] | None) -> AutoencoderConfig | None:
    return None if autoencoder is None else settings_of(autoencoder, AutoencoderConfig)
