"""What every loss through the frozen decoder is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from calm_core.config import DecoderLossConfig
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.cross_entropy import row_blocks
from calm_core.models.heads.base import Head
from calm_core.models.noise import SequenceNoise


class DecoderLoss(ABC):
    """A loss of the decoder's distributions over the next chunk's tokens, given samples of a head.

    Its gradient goes through the frozen decoder into the samples, and so into head and backbone.

    Args:
        config: Its settings.
        autoencoder: Whose decoder it is; it gets no gradient.

    Attributes:
        name: Of the loss in curves.
    """

    name: ClassVar[str]

    def __init__(self, config: DecoderLossConfig, autoencoder: Autoencoder) -> None:
        self.config = config
        self.autoencoder = autoencoder

    @abstractmethod
    def of_logits(self, logits_RNKV: Tensor, chunks_RK: Tensor, real_RK: Tensor) -> Tensor:
        """The loss of each position, fp32 [R], of a block of positions; torch differentiates it.

        Args:
            logits_RNKV: fp32, of N independent samples.
            chunks_RK: int64, the true tokens.
            real_RK: bool, False at padding, which does not count; True once at least in each chunk.
        """

    def __call__(self, latents_RNL: Tensor, chunks_RK: Tensor, real_RK: Tensor, before_RW: Tensor) -> Tensor:
        """The loss of each position, fp32 [R].

        As in `energy_loss` the gradient is computed along with the loss, in blocks of positions: [N, K, V] logits, and
        what the decoder keeps for its backward pass, never exist for more than a block.

        Args:
            latents_RNL: Samples of the head, the only argument that gets a gradient.
            chunks_RK, real_RK: As of `of_logits`.
            before_RW: int64, the tokens before them, which a decoder may read.
        """

        def loss(latents_RNL: Tensor, rows: slice) -> Tensor:
            read = before_RW[rows].unsqueeze(1), chunks_RK[rows].unsqueeze(1)
            logits_RNKV = self.autoencoder.logits(latents_RNL, *read).float()
            with torch.autocast(logits_RNKV.device.type, enabled=False):
                return self.of_logits(logits_RNKV, chunks_RK[rows], real_RK[rows])

        numbers = latents_RNL.shape[1] * chunks_RK.shape[1] * self.autoencoder.vocab_size  # logits of a position
        blocks = row_blocks(len(latents_RNL), numbers)
        return cast(Tensor, _InBlocks.apply(latents_RNL, loss, blocks))  # type: ignore[no-untyped-call] # torch's own

    def of_head(
        self,
        head: Head,
        hidden_BPD: Tensor,
        noise: SequenceNoise,
        *,
        chunks_BPK: Tensor,
        real_BPK: Tensor,
        before_BPW: Tensor,
    ) -> Tensor:
        """An unbiased estimate of the loss summed over the positions that count (fp32 scalar).

        Args:
            head: That samples.
            hidden_BPD: States after each position.
            chunks_BPK: The true next chunk of each.
            real_BPK: Which tokens of it are real.
            before_BPW: The tokens before it, which a decoder may read.
            noise: One generator for each sequence, so neither ranks nor micro-batches decide which positions are drawn.
        """
        config = self.config
        chosen_BP = chosen(real_BPK.any(-1), config.positions, noise)
        # Drawn for all positions, also those that do not count: else a sequence's draws would depend on its padding.
        samples = config.samples or head.config.model_samples
        drawn_BPNU = head.sampling_noise(noise, hidden_BPD.shape[1], samples)
        latents_RNL = head.sample(hidden_BPD[chosen_BP], drawn_BPNU[chosen_BP])
        return self(latents_RNL, *(of[chosen_BP] for of in (chunks_BPK, real_BPK, before_BPW))).sum() / config.positions


def chosen(counted_BP: Tensor, share: float, noise: SequenceNoise) -> Tensor:
    """A share of the positions that count, bool [B, P]: each with that probability, of each sequence evenly.

    With c the number of counted positions up to one, and one uniform u for the sequence, the position is taken where
    floor(c share + u) steps up: so their number is off by less than one.
    """
    place_BP = counted_BP.cumsum(-1) * share + noise.uniform(1).double()
    return counted_BP & (place_BP.floor() > (place_BP - share).floor()) if share < 1 else counted_BP


class _InBlocks(torch.autograd.Function):
    """A loss of positions that are independent of each other, and its gradient, a block of positions at a time."""

    @staticmethod
    def forward(ctx: Any, latents_RNL: Tensor, loss: Callable[[Tensor, slice], Tensor], blocks: list[slice]) -> Tensor:
        loss_R = torch.empty(len(latents_RNL), device=latents_RNL.device)
        grad_RNL = torch.empty_like(latents_RNL) if ctx.needs_input_grad[0] else None
        for rows in blocks:
            part = latents_RNL[rows].detach()
            if grad_RNL is None:
                loss_R[rows] = loss(part, rows)
                continue
            with torch.enable_grad():
                part_loss = loss(part.requires_grad_(), rows)
                (grad_RNL[rows],) = torch.autograd.grad(part_loss.sum(), part)
            loss_R[rows] = part_loss.detach()
        ctx.grad_RNL = grad_RNL
        return loss_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None, None]:
        return ctx.grad_RNL * grad_R.view(-1, 1, 1).to(ctx.grad_RNL.dtype), None, None
