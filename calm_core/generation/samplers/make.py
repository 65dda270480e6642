"""The samplers by name; another one is a class of `base.Sampler` and a line here."""

from collections.abc import Mapping

from calm_core.config.evaluation import SamplerName
from calm_core.errors import CalmError
from calm_core.generation.samplers.base import OneLatent, Sampler
from calm_core.generation.samplers.counting import Batch, Exact
from calm_core.generation.samplers.densest import Densest
from calm_core.generation.samplers.path import Path
from calm_core.generation.samplers.scaled import Branch, NoiseScale, Truncated
from calm_core.generation.sampling import Sampling
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.heads.base import Head
from calm_core.models.heads.flow import FlowHead
from calm_core.models.heads.mixture import MixtureHead
from calm_core.models.heads.residual import ResidualHead

BY_NAME: Mapping[SamplerName, type[Sampler]] = {
    "path": Path,
    "noise-scale": NoiseScale,
    "truncated": Truncated,
    "branch": Branch,
    "densest": Densest,
    "batch": Batch,
    "exact": Exact,
}
_BEST: Mapping[type[Head], SamplerName] = {FlowHead: "path", ResidualHead: "branch", MixtureHead: "branch"}


def sampler_for(head: Head, autoencoder: Autoencoder, sampling: Sampling) -> type[Sampler]:
    """The sampler of a model with this head.

    Raises:
        CalmError: The one that is asked for does not go with the head.
    """
    name = name_for(head, autoencoder, sampling)
    if reason := BY_NAME[name].unfit(head):
        raise CalmError(f"sampler {name}: does not go with a head of kind {head.config.kind}: {reason}")
    return OneLatent if sampling.temperature == 1 else BY_NAME[name]


def name_for(head: Head, autoencoder: Autoencoder, sampling: Sampling) -> SamplerName:
    """The name of the sampler that is asked for, or else is the default for the model."""
    return sampling.named or default_for(head, autoencoder)


def default_for(head: Head, autoencoder: Autoencoder) -> SamplerName:
    """The best one by measurement (docs/quality.md); elsewhere the paper's."""
    return "batch" if autoencoder.reads else _BEST.get(type(head), "batch")
