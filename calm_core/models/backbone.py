"""A Llama-style causal Transformer (RMSNorm, SwiGLU, rotary positions), over chunks or over tokens.

Parameter names are those of Hugging Face's LlamaModel.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calm_core.config import BackboneConfig
from calm_core.models.layers import RMSNorm, SwiGLU


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one layer's past positions, [B, H, P, E]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Branches:
    """Positions of several continuations that share the prefix they branch off from.

    Branch q continues the prefix after its position `start[q]`; its own past is `own`, one entry a layer.

    Attributes:
        start: int64 [B, Q], last prefix position that branch q sees.
        prefix: Keys and values of the prefix, one entry a layer, [B, H, P, E].
        own: Keys and values of the branches' own positions so far, one entry a layer, [B, H, Q, J, E].
    """

    start: Tensor
    prefix: list[KeyValues]
    own: list[KeyValues] | None = None

    def rows(self, index: Tensor) -> "Branches":
        """The branches of some sequences of the batch."""

        def pick(layers: list[KeyValues]) -> list[KeyValues]:
            return [KeyValues(layer.keys[index], layer.values[index]) for layer in layers]

        return Branches(self.start[index], pick(self.prefix), pick(self.own) if self.own else None)


def rotary(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, fp32 [*positions, E] (Su et al. 2021; halves rotated as in Llama)."""
    # Numbers i and i + E/2 of a head are the two coordinates that turn together, so each angle stands twice.
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions.float().unsqueeze(-1) * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to [..., E]."""
    # (a, b) turned by t is (a cos t - b sin t, b cos t + a sin t): the partner of each number, with its sign.
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_size = hidden // config.num_attention_heads
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def _heads(self, x_BPD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            projection(x_BPD).unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if torch.is_autocast_enabled("cpu"):  # in bf16, torch's fused attention takes twice the time there
            q, k, v = q.float(), k.float(), v.float()
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _merge(self, out_BHPE: Tensor) -> Tensor:
        out: Tensor = self.o_proj(out_BHPE.transpose(1, 2).flatten(-2))
        return out

    def forward(
        self, x_BPD: Tensor, cos: Tensor, sin: Tensor, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Attend to the past and to the positions before each one; returns the states and all keys and values."""
        q, k, v = self._heads(x_BPD, cos, sin)
        if past is not None:
            k, v = torch.cat([past.keys, k], dim=2), torch.cat([past.values, v], dim=2)
        # One new position sees all before it, and without a past the mask is a plain triangle: both without a mask.
        visible = None
        if past is not None and q.shape[2] > 1:
            # Query i stands at place (k - q) + i of all positions, so the triangle begins that far to the right.
            visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            visible = visible.tril(k.shape[2] - q.shape[2])
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=past is None)
        return self._merge(out), KeyValues(k, v)

    def branch(
        self, x_BQD: Tensor, cos: Tensor, sin: Tensor, start: Tensor, prefix: KeyValues, own: KeyValues | None
    ) -> tuple[Tensor, KeyValues]:
        """One more position of each branch: it sees the prefix up to its start, and its own past."""
        q, k, v = self._heads(x_BQD, cos, sin)
        keys, values = k.unsqueeze(3), v.unsqueeze(3)
        if own is not None:
            keys, values = torch.cat([own.keys, keys], dim=3), torch.cat([own.values, values], dim=3)
        # Two score blocks and one softmax over both: the prefix is shared by all branches of a sequence, so its keys
        # are used where they lie, one matrix product for all branches, and never copied for each of them. The own past
        # of a branch is short. In fp32, as fused attention does it.
        scale = self.head_size**-0.5
        to_prefix = (q @ prefix.keys.transpose(2, 3)).float() * scale
        visible_BQP = torch.arange(prefix.keys.shape[2], device=q.device) <= start.unsqueeze(-1)
        to_prefix = to_prefix.masked_fill(~visible_BQP.unsqueeze(1), -torch.inf)
        to_own = (keys @ q.unsqueeze(-1)).squeeze(-1).float() * scale
        weights = torch.cat([to_prefix, to_own], dim=-1).softmax(-1).to(q.dtype)
        weights_prefix, weights_own = weights.split([to_prefix.shape[-1], to_own.shape[-1]], dim=-1)
        out = weights_prefix @ prefix.values + (weights_own.unsqueeze(-2) @ values).squeeze(-2)
        return self._merge(out), KeyValues(keys, values)


class Layer(nn.Module):
    """One Transformer layer, normalised before attention and before the feed-forward."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        attended, key_values = self.self_attn(self.input_layernorm(x), cos, sin, past)
        return self.feed_forward(x + attended), key_values

    def branch(
        self, x: Tensor, cos: Tensor, sin: Tensor, start: Tensor, prefix: KeyValues, own: KeyValues | None
    ) -> tuple[Tensor, KeyValues]:
        attended, key_values = self.self_attn.branch(self.input_layernorm(x), cos, sin, start, prefix, own)
        return self.feed_forward(x + attended), key_values


class Backbone(nn.Module):
    """Token embeddings, layers and the final norm; the input of the layers is made outside, from chunks or tokens.

    Attributes:
        activation_checkpointing: While gradients are computed, keep each layer's input only.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(positions, self.config.hidden_size // self.config.num_attention_heads, self.config.rope_theta)

    def forward(self, x_BPD: Tensor, past: list[KeyValues] | None = None) -> tuple[Tensor, list[KeyValues]]:
        """Hidden states [B, P, D] of embeddings, and the keys and values of all positions, one entry a layer.

        Activation checkpointing gives no keys and values: holding them is what it avoids.
        """
        x_BPD = x_BPD.to(self.norm.weight.dtype)  # under autocast, states are summed along the layers in fp32
        offset = past[0].keys.shape[2] if past else 0
        cos, sin = self._rotary(torch.arange(offset, offset + x_BPD.shape[1], device=x_BPD.device))
        if self.activation_checkpointing and torch.is_grad_enabled():
            for layer in self.layers:
                x_BPD = checkpoint(_states, layer, x_BPD, cos, sin, use_reentrant=False)
            return self.norm(x_BPD), []
        new: list[KeyValues] = []
        for i, layer in enumerate(self.layers):
            x_BPD, key_values = layer(x_BPD, cos, sin, past[i] if past else None)
            new.append(key_values)
        return self.norm(x_BPD), new

    def branch(self, x_BQD: Tensor, branches: Branches) -> tuple[Tensor, Branches]:
        """Hidden states [B, Q, D] of one more position of each branch, and the branches with it."""
        # A branch continues the sequence after its start, so its next position is start + 1 + what it has already.
        done = branches.own[0].keys.shape[3] if branches.own else 0
        cos, sin = (table.unsqueeze(1) for table in self._rotary(branches.start + 1 + done))
        own: list[KeyValues] = []
        for i, layer in enumerate(self.layers):
            past = branches.own[i] if branches.own else None
            x_BQD, key_values = cast(Layer, layer).branch(x_BQD, cos, sin, branches.start, branches.prefix[i], past)
            own.append(key_values)
        return self.norm(x_BQD), Branches(branches.start, branches.prefix, own)


def _states(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    states: Tensor = layer(x, cos, sin)[0]
    return states
