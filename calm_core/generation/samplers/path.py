"""A flow head's path, held closer to the mean of the latent."""

import torch
from torch import Tensor

from calm_core.generation.samplers.base import OneLatent
from calm_core.models.heads.base import Head
from calm_core.models.heads.flow import FlowHead
from calm_core.models.noise import SequenceNoise


class Path(OneLatent):
    """The path of a flow head from noise times T, in as many evaluations as at temperature 1.

    sqrt(T) would be exact for normal latents, as in `noise-scale`. Those of text are modes, one a chunk, whose weights
    the power changes and not their widths: T comes nearer to P^(1/T) there (docs/quality.md).
    """

    @classmethod
    def unfit(cls, head: Head) -> str:
        return "" if isinstance(head, FlowHead) else "it is a path of the flow head"

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        head = self.calm.mlp_generator
        assert isinstance(head, FlowHead)
        return shrunk_path(head, hidden_BD, self.calm.sampling_noise(noise, number), temperature)


def shrunk_path(head: FlowHead, hidden: Tensor, drawn: Tensor, share: float) -> Tensor:
    """`FlowHead.sample`, begun at `share` of the noise: from 1, where it is that, to 0, the path from no noise.

    The network has never seen so little noise. So it is asked for the first velocity at the noise as drawn: from there
    the mean of the latent is x + v, and from any other beginning the velocity is that mean less the beginning. Later,
    the midpoint, where the noise is even less than the network believes, corrects the Euler step by `share` alone.
    """
    evaluations, condition = head.config.sampling_steps, head.condition(hidden)
    steps = -(-evaluations // 2)
    size, x = 1 / steps, share * drawn
    for i in range(steps):
        start = torch.full((1,), i * size, device=drawn.device)
        velocity = head.predict(x if i else drawn, start, condition)
        if i == 0:
            velocity = velocity + (1 - share) * drawn
        if i > 0 or evaluations % 2 == 0:
            middle = head.predict(x + velocity * size / 2, start + size / 2, condition)
            velocity = velocity + share * (middle - velocity)
        x = x + velocity * size
    return x * head.latent_scale
