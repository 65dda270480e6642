"""Mixing datasets by weight."""

import math
from collections.abc import Mapping

from calm_core.data.reading.dataset import require_alike
from calm_core.data.reading.order import SMALLEST_WEIGHT
from calm_core.errors import ConfigError
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, MixtureFacts


def mix_datasets(weights: Mapping[str, float], output_uri: str, *, overwrite: bool = False) -> Artifact[MixtureFacts]:
    """Name several datasets that are trained on as one; nothing is copied.

    Args:
        weights: Share of each dataset's sequences in every batch, by its URI; they need not add up to 1.
        output_uri: Where the `mixture` artifact is written. Every stage takes it for a dataset.
        overwrite: Whether another mixture that lies there is replaced (see `ArtifactWriter`).

    Raises:
        ConfigError: There is no dataset, one is named twice, a weight is too small, or the datasets have other
            tokenizers or lengths.
    """
    if not weights:
        raise ConfigError("no datasets to mix; name some with their weights")
    for uri, weight in weights.items():
        if not 0 < weight < math.inf:
            raise ConfigError(f"{uri}: its weight is {weight:g}; give a number above 0, or leave the dataset out")
    total = sum(weights.values())
    for uri, weight in weights.items():
        if weight < SMALLEST_WEIGHT * total:
            raise ConfigError(
                f"{uri}: weight {weight:g} is not {SMALLEST_WEIGHT:.1%} of the mixture or more; change it"
            )
    names: dict[str, str] = {}
    for uri in weights:
        if (other := names.setdefault(storage.real(uri), uri)) != uri:
            raise ConfigError(f"{uri}: is the same dataset as {other}; give it one weight")
    datasets = [Artifact(uri, DatasetFacts) for uri in weights]
    require_alike(datasets)
    parents = {f"dataset-{i}": dataset.digest for i, dataset in enumerate(datasets)}
    facts = MixtureFacts(
        weights=[round(weight / total, 12) for weight in weights.values()],
        digests=[dataset.digest for dataset in datasets],
        datasets=[storage.absolute(uri) for uri in weights],
    )
    writer = ArtifactWriter(output_uri, MixtureFacts, {}, parents, overwrite=overwrite)
    writer.check(lambda found: found.results == facts.part("results"))
    with writer:
        writer.facts = facts
    return Artifact(output_uri, MixtureFacts)
