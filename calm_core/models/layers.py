"""Layers shared by the autoencoder and the language model's backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def product_dtype(x: Tensor) -> torch.dtype:
    """In which matrix products are computed: what autocast says, else the type of their input."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # of "meta" it is not
        return torch.get_autocast_dtype(device)
    return x.dtype


class RMSNorm(nn.RMSNorm):
    """Computed in the type of its weight and given in that of the products that take it, so cast once for all of them.

    [..., D] -> [..., D].
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(product_dtype(x))


class SwiGLU(nn.Module):
    """Gated feed-forward layer: down(SiLU(gate(x)) * up(x)), without biases. [..., D] -> [..., D]."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def initialize(module: nn.Module) -> None:
    """Initial weights, for `nn.Module.apply`: N(0, 1 / inputs) in linear layers, N(0, 1 / size) in embeddings.

    A fixed standard deviation (0.02 is common for wide models) leaves the gates of narrow ones so close to zero that
    the energy head does not see its condition for hundreds of steps.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


def rows_of(x_BP: Tensor, counted_BP: Tensor) -> Tensor:
    """`x_BP[counted_BP]`, [R, ...], without a copy where all positions count, as in most batches of packed text."""
    return x_BP.flatten(0, 1) if counted_BP.all() else x_BP[counted_BP]


def freeze(model: ModuleT) -> ModuleT:
    """Evaluation mode, no gradients; for a model that another one is trained on."""
    return model.eval().requires_grad_(False)


@contextmanager
def without_storage() -> Iterator[None]:
    """In this block, modules are made on the meta device: they have shapes, and take no memory."""
    with torch.device("meta"), _WithoutInitialWeights():
        yield


class _WithoutInitialWeights(TorchFunctionMode):
    """Weights without storage need no values; torch would import its compiler to give them some."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        return named["tensor"] if getattr(func, "__module__", "") == nn.init.__name__ else func(*args, **named)
