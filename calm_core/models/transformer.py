"""The token-level Transformer baseline: CALM's backbone over tokens, with a softmax over the vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calm_core.config import TransformerModelConfig
from calm_core.models.backbone import Backbone
from calm_core.models.cross_entropy import linear_cross_entropy, row_blocks
from calm_core.models.layers import initialize, rows_of


@dataclass(frozen=True)
class NextToken:
    """Draws from the distributions of the next token after R states.

    Attributes:
        token_RS: int64, S tokens drawn from each.
        probability_RS: Their probabilities, fp64.
        collision_R: Sum of all squared probabilities, fp64: how likely two draws are equal.
    """

    token_RS: Tensor
    probability_RS: Tensor
    collision_R: Tensor


class Transformer(nn.Module):
    """Causal language model over tokens; the output projection is not tied to the embedding."""

    def __init__(self, config: TransformerModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.transformer = Backbone(config, vocab_size)
        self.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False)
        self.apply(initialize)

    def embed(self, tokens: Tensor) -> Tensor:
        """Backbone inputs [..., D] of int64 tokens [...]."""
        out: Tensor = self.transformer.embed_tokens(tokens)
        return out

    def forward(self, tokens_BT: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the real tokens after the first (fp32, nats), and how many were the likeliest."""
        hidden_BTD, _ = self.transformer(self.embed(tokens_BT[:, :-1]))
        counted_BT = real_BT[:, 1:]
        return linear_cross_entropy(
            rows_of(hidden_BTD, counted_BT), self.lm_head.weight, rows_of(tokens_BT[:, 1:], counted_BT)
        )

    @torch.no_grad()
    def probability(self, hidden_RD: Tensor, token_R: Tensor) -> Tensor:
        """Probability of a next token after each state, fp64 [R]."""
        parts = []
        for block in row_blocks(len(hidden_RD), self.vocab_size):
            logits = self.lm_head(hidden_RD[block]).float()
            chosen = logits.gather(1, token_R[block].unsqueeze(1)).squeeze(1)
            parts.append((chosen.double() - logits.logsumexp(1).double()).exp())
        return torch.cat(parts)

    @torch.no_grad()
    def interval(self, hidden_RD: Tensor, token_R: Tensor) -> tuple[Tensor, Tensor]:
        """Where each next token lies in [0, 1) if all tokens lie there side by side, the likeliest first.

        Returns:
            Start and size of its interval, fp64 [R]; the size is its probability.
        """
        start_R, size_R = torch.empty(2, len(hidden_RD), dtype=torch.float64, device=hidden_RD.device)
        order_V = torch.arange(self.vocab_size, device=token_R.device)
        for block in row_blocks(len(hidden_RD), self.vocab_size):
            p_RV = self.lm_head(hidden_RD[block]).float().softmax(1).double()
            token_R1 = token_R[block].unsqueeze(1)
            own_R1 = p_RV.gather(1, token_R1)
            before_RV = (p_RV > own_R1) | ((p_RV == own_R1) & (order_V < token_R1))
            start_R[block], size_R[block] = (p_RV * before_RV).sum(1), own_R1.squeeze(1)
        return start_R, size_R

    @torch.no_grad()
    def next_token(self, hidden_RD: Tensor, uniform_RS: Tensor, temperature: float = 1.0) -> NextToken:
        """Draw S tokens after each state, by numbers uniform in [0, 1); logits are divided by the temperature."""
        parts = []
        for block in row_blocks(len(hidden_RD), self.vocab_size):
            p_RV = (self.lm_head(hidden_RD[block]).float() / temperature).softmax(1).double()
            cumulative_RV = p_RV.cumsum(1)
            reached_RS = uniform_RS[block].double() * cumulative_RV[:, -1:]
            token_RS = torch.searchsorted(cumulative_RV, reached_RS, right=True).clamp_max(self.vocab_size - 1)
            parts.append((token_RS, p_RV.gather(1, token_RS), p_RV.square().sum(1)))
        return NextToken(*(torch.cat(part) for part in zip(*parts, strict=True)))
