"""Continuations of every scored position of a sequence, advanced together."""

from collections.abc import Callable

import torch
from torch import Tensor

from calm_core.models.backbone import Backbone, Branches, KeyValues


class Continuations:
    """S continuations after each of P positions of B sequences; one batch that shares the sequences' past.

    Continuations of one position that are equal so far are one node, which the backbone computes once.

    Suffixes: A continuations that are alive, U nodes, sorted by sequence.

    Args:
        backbone: What is run on the appended tokens.
        vocab_size: V.
        prefix: Keys and values of the sequences, one entry a layer.
        start_P: int64, the last backbone position that each scored position sees.
        batch: B.
        samples: S.

    Attributes:
        alive_A: int64, which of the B * P * S continuations are left.
        node_A: int64, the node of each.
    """

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: int,
        prefix: list[KeyValues],
        start_P: Tensor,
        *,
        batch: int,
        samples: int,
    ) -> None:
        positions, device = len(start_P), start_P.device
        node_U = torch.arange(batch * positions, device=device)
        self.alive_A = torch.arange(batch * positions * samples, device=device)
        self.node_A = node_U.repeat_interleave(samples)
        self._backbone = backbone
        self._vocab_size = vocab_size
        self._batch = batch
        self._branches = Branches(start_P.expand(batch, positions), prefix)
        self._sequence_U, self._slot_U = node_U // positions, node_U % positions

    def advance(self, tokens_AK: Tensor, embed: Callable[[Tensor], Tensor], matters_A: Tensor | None = None) -> Tensor:
        """Append a chunk, or a token, to each continuation; returns the backbone's states of the nodes [U, D].

        Args:
            tokens_AK: int64, what is appended.
            embed: Backbone inputs [..., D] of tokens [..., K].
            matters_A: bool; of the others, those that no other continuation equals are dropped. None keeps all.
        """
        code_A = self.node_A
        for token_A in tokens_AK.unbind(-1):
            _, code_A, count_U = torch.unique(
                code_A * self._vocab_size + token_A, return_inverse=True, return_counts=True
            )
        if matters_A is not None:
            kept_A = matters_A | (count_U[code_A] > 1)
            self.alive_A, self.node_A = self.alive_A[kept_A], self.node_A[kept_A]
            tokens_AK, code_A = tokens_AK[kept_A], code_A[kept_A]
        _, code_A, count_U = torch.unique(code_A, return_inverse=True, return_counts=True)
        first_U = torch.argsort(code_A, stable=True)[count_U.cumsum(0) - count_U]
        parent_U = self.node_A[first_U]
        self._grow(parent_U, embed(tokens_AK[first_U]))
        self.node_A = code_A
        return self._hidden_BQD[self._sequence_U, self._slot_U]

    def _grow(self, parent_U: Tensor, x_UD: Tensor) -> None:
        """Run the backbone on one more position of each new node, its past that of its parent."""
        parent_slot_U, start_U = self._slot_U[parent_U], self._branches.start[self._place(parent_U)]
        self._sequence_U = self._sequence_U[parent_U]
        nodes_B = torch.bincount(self._sequence_U, minlength=self._batch)
        every_U = torch.arange(len(parent_U), device=parent_U.device)
        self._slot_U = every_U - (nodes_B.cumsum(0) - nodes_B)[self._sequence_U]

        shape = (self._batch, int(nodes_B.max()))
        x_BQD = self._padded(x_UD, shape)
        own = self._branches.own
        if own is not None:
            index = self._padded(parent_slot_U, shape)[:, None, :, None, None]
            own = [
                KeyValues(torch.take_along_dim(o.keys, index, 2), torch.take_along_dim(o.values, index, 2)) for o in own
            ]
        branches = Branches(self._padded(start_U, shape), self._branches.prefix, own)
        self._hidden_BQD, self._branches = self._backbone.branch(x_BQD, branches)

    def _place(self, node: Tensor) -> tuple[Tensor, Tensor]:
        return self._sequence_U[node], self._slot_U[node]

    def _padded(self, values_U: Tensor, shape: tuple[int, int]) -> Tensor:
        """Values of nodes [U, ...] as [B, Q, ...]; zero in the places of no node."""
        padded = values_U.new_zeros(*shape, *values_U.shape[1:])
        padded[self._sequence_U, self._slot_U] = values_U
        return padded
