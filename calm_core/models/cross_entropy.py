"""Cross-entropy over a large vocabulary without its logits: [R, V] is made a block of rows at a time."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_core.models.layers import product_dtype

_BLOCK_ELEMENTS = 2**24  # logits that exist at a time: 64 MB in fp32


def row_blocks(rows: int, vocab_size: int) -> list[slice]:
    """Blocks of rows whose logits fit into memory; of one size for a vocabulary, whatever the number of rows."""
    size = max(1, _BLOCK_ELEMENTS // vocab_size)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def linear_cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits = hidden @ weight^T.

    The gradients are computed along with the loss, block by block, so that the backward pass needs no logits either
    (the idea of Hsu et al. 2024, Liger Kernel).

    Args:
        hidden_RD: States; their dtype, or what autocast says, is that of the products, all else is fp32.
        weight_VD: Output projection, [V, D].
        target_R: int64 token ids.

    Returns:
        The sum over rows in nats, fp32, and the number of rows whose most likely token is the target.
    """
    hidden_RD = hidden_RD.to(product_dtype(hidden_RD))
    weight_VD = weight_VD.to(hidden_RD.dtype)
    loss, correct = cast(
        tuple[Tensor, Tensor],
        _LinearCrossEntropy.apply(hidden_RD, weight_VD, target_R),  # type: ignore[no-untyped-call] # torch's own
    )
    return loss, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
        loss = torch.zeros((), device=hidden_RD.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_RD.device)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden_RD = torch.empty_like(hidden_RD) if wanted else None
        # A frozen projection, of a decoder that a loss passes through, needs none: a third of the products.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for block in row_blocks(len(hidden_RD), len(weight_VD)):
            h, target = hidden_RD[block], target_R[block].unsqueeze(1)
            logits = F.linear(h, weight_VD).float()
            own = logits.gather(1, target)
            largest, likeliest = logits.max(1, keepdim=True)  # on a CPU, argmax alone takes twice the time
            correct += (likeliest == target).sum()
            weights = logits.sub_(largest).exp_()  # in the place of the logits, which are not needed again
            total = weights.sum(1, keepdim=True)
            loss += (largest + total.log() - own).sum()
            if grad_hidden_RD is not None:
                # d loss / d logits = softmax - one-hot
                grad = weights.div_(total)
                grad.scatter_(1, target, grad.gather(1, target) - 1)
                grad = grad.to(h.dtype)
                grad_hidden_RD[block] = grad @ weight_VD
                if grad_weight_VD is not None:
                    grad_weight_VD += grad.T @ h
        ctx.grads = grad_hidden_RD, grad_weight_VD
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # The loss is a scalar, so the chain rule only scales what forward has computed.
        grad_hidden_RD, grad_weight_VD = ctx.grads
        scale = grad_outputs[0]
        of_weight = None if grad_weight_VD is None else (grad_weight_VD * scale).to(grad_hidden_RD.dtype)
        return grad_hidden_RD * scale.to(grad_hidden_RD.dtype), of_weight, None
