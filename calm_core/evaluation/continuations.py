"""Continuations of every scored position of a sequence, advanced together.

Suffixes of names as in `calm_core.models`, and
    A continuations that are alive    U nodes, and in [U, S] as many places as the largest one has continuations
    Q as many places as the sequence with the most nodes has nodes

An example: one sequence, two scored positions, two samples each, K = 1, and a vocabulary of ten tokens. Before
anything is appended, each position is a node, and its samples are the continuations of that node:

    continuation    0  1  2  3      alive_A
    node            0  0  1  1      node_A
    rank            0  1  0  1      rank_A

`advance` appends the tokens 7 7 3 5. Continuations 0 and 1 stay equal, 2 and 3 part, so there are three new nodes. A
new node is told by its parent and its token, in one number (here 10 * node + token), and the numbers are replaced by
their ranks, which keeps the nodes in the order of their parents, and so in the order of the sequences:

    number          7  7 13 15
    code            0  0  1  2      code_A, the new node of each

Let 3 be the true token after position 1, and `matters_A` say so (0 0 1 0). Continuation 3 is neither true nor equal to
another, so it can neither hit nor collide from here on, and is dropped. 0 and 1 are not true either, but equal:

    continuation    0  1  2         alive_A
    code            0  0  1         code_A, numbered anew without the gap of the dropped node
    first           0  2            first_U, the place in the line above of one continuation of each new node
    parent          0  1            parent_U, the old node of that one

The backbone computes one more position for each of the two nodes, on top of the past of their parents. Then code_A
becomes node_A, and the ranks are 0 1 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calm_core.models.backbone import Backbone, Branches, KeyValues


class Continuations:
    """S continuations after each of P positions of B sequences; one batch that shares the sequences' past.

    Continuations of one position that are equal so far are one node, which the backbone computes once.

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
        self._rank_A, self._most = self.alive_A % samples, samples
        self._backbone = backbone
        self._vocab_size = vocab_size
        self._batch = batch
        self._branches = Branches(start_P.expand(batch, positions), prefix)
        # Where a node lies in the backbone's batch [B, Q].
        self._sequence_U, self._slot_U = node_U // positions, node_U % positions

    def advance(self, tokens_AK: Tensor, embed: Callable[[Tensor], Tensor], matters_A: Tensor | None = None) -> Tensor:
        """Append a chunk, or a token, to each continuation; returns the backbone's states of the nodes [U, D].

        Args:
            tokens_AK: int64, what is appended.
            embed: Backbone inputs [..., D] of tokens [..., K].
            matters_A: bool; of the others, those that no other continuation equals are dropped. None keeps all.
        """
        code_A, count_U = self._grouped(tokens_AK)
        if matters_A is not None:
            kept_A = matters_A | (count_U[code_A] > 1)
            self.alive_A, self.node_A, tokens_AK = self.alive_A[kept_A], self.node_A[kept_A], tokens_AK[kept_A]
            _, code_A, count_U = torch.unique(code_A[kept_A], return_inverse=True, return_counts=True)
        # Continuations by node: those of one node lie together, and begin where the nodes before it end.
        order_A = torch.argsort(code_A, stable=True)
        begin_U = count_U.cumsum(0) - count_U
        first_U = order_A[begin_U]
        hidden_UD = self._grow(self.node_A[first_U], embed(tokens_AK[first_U]))

        self.node_A = code_A
        self._rank_A = torch.empty_like(code_A)
        self._rank_A[order_A] = torch.arange(len(code_A), device=code_A.device) - begin_U.repeat_interleave(count_U)
        self._most = int(count_U.max()) if len(count_U) else 0
        return hidden_UD

    def by_node(self, values_A: Tensor) -> Tensor:
        """Values of the continuations [A, ...] as [U, S, ...]: a row for each node and rank; zero where there is none.

        Continuations of a node share its state, but each draws with noise of its own. Given as rows of the node, the
        model computes on the state once, and on each row of noise.
        """
        values_US = values_A.new_zeros(len(self._sequence_U), self._most, *values_A.shape[1:])
        values_US[self.node_A, self._rank_A] = values_A
        return values_US

    def by_continuation(self, values_US: Tensor) -> Tensor:
        """The way back: rows of nodes and ranks [U, S, ...] as values of the continuations [A, ...]."""
        return values_US[self.node_A, self._rank_A]

    def _grouped(self, tokens_AK: Tensor) -> tuple[Tensor, Tensor]:
        """The new node of each continuation, int64 [A], and how many continuations each has, int64 [U].

        Token by token: numbered anew after each, a code stays below A * V. At once it would reach U * V^K, which is
        beyond 64 bits with four tokens of a large vocabulary (2^17).
        """
        code_A = self.node_A
        for token_A in tokens_AK.unbind(-1):
            _, code_A, count_U = torch.unique(
                code_A * self._vocab_size + token_A, return_inverse=True, return_counts=True
            )
        return code_A, count_U

    def _grow(self, parent_U: Tensor, x_UD: Tensor) -> Tensor:
        """Run the backbone on one more position of each new node, its past that of its parent."""
        parent_slot_U = self._slot_U[parent_U]
        start_U = self._branches.start[self._sequence_U[parent_U], parent_slot_U]
        # The nodes are in the order of their sequences, so a node's slot is its distance from its sequence's first.
        self._sequence_U = self._sequence_U[parent_U]
        nodes_B = torch.bincount(self._sequence_U, minlength=self._batch)
        begin_B = nodes_B.cumsum(0) - nodes_B
        self._slot_U = torch.arange(len(parent_U), device=parent_U.device) - begin_B[self._sequence_U]

        # A sequence with fewer nodes than the others is filled up: those places compute in vain, and nobody reads them.
        shape = (self._batch, int(nodes_B.max()))
        own = self._own_of(self._padded(parent_slot_U, shape))
        branches = Branches(self._padded(start_U, shape), self._branches.prefix, own)
        hidden_BQD, self._branches = self._backbone.branch(self._padded(x_UD, shape), branches)
        return hidden_BQD[self._sequence_U, self._slot_U]

    def _own_of(self, parent_BQ: Tensor) -> list[KeyValues] | None:
        """Keys and values since the prefix of the nodes in some slots, one entry a layer; None of the first nodes.

        Each child gets a copy of its parent's: siblings go on alone. The prefix, which is long, is never copied.
        """
        if self._branches.own is None:
            return None
        index = parent_BQ[:, None, :, None, None]
        return [
            KeyValues(torch.take_along_dim(own.keys, index, 2), torch.take_along_dim(own.values, index, 2))
            for own in self._branches.own
        ]

    def _padded(self, values_U: Tensor, shape: tuple[int, int]) -> Tensor:
        """Values of nodes [U, ...] as [B, Q, ...]; zero in the places of no node."""
        padded = values_U.new_zeros(*shape, *values_U.shape[1:])
        padded[self._sequence_U, self._slot_U] = values_U
        return padded
