"""Packing: token documents to sequences of equal length, as a stream."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint32]


class Packer:
    """Concatenates documents and cuts them into sequences.

    Each document is its tokens, EOS, and padding up to a multiple of `document_alignment`, so that no chunk of a size
    that divides it straddles two documents. A document may go on in the next sequence; the last one is padded. With an
    alignment of 4 and T = 8, documents of 5 and 4 tokens become

        a a a a a E - -    b b b b E - - -    (E: EOS, -: padding)

    Args:
        sequence_length: T, tokens in a sequence.
        block_rows: Sequences that are handed out at a time; no more is kept.
        document_alignment: Documents begin on a multiple of this many tokens; T is one, too.
        pad_id, eos_id: The special tokens.
    """

    def __init__(
        self, *, sequence_length: int, block_rows: int, document_alignment: int, pad_id: int, eos_id: int
    ) -> None:
        self._length = sequence_length
        self._alignment = document_alignment
        self._pad_id = pad_id
        # EOS and the most padding that may follow it: the end of each document is the start of this.
        self._end = np.full(document_alignment, pad_id, dtype=np.uint32)
        self._end[0] = eos_id
        self._block = np.full(block_rows * sequence_length, pad_id, dtype=np.uint32)
        self._used = 0  # tokens of the block that is being filled
        self.padding = 0

    def push(self, document: Tokens) -> Iterator[Tokens]:
        """Append a document; yields each block that it fills, uint32 [block_rows, T]."""
        padding = -(len(document) + 1) % self._alignment  # with EOS, up to the next multiple
        self.padding += padding
        for part in (document, self._end[: 1 + padding]):
            while len(part):
                room = len(self._block) - self._used
                # Both sides are cut where the block ends, so that they have equal lengths.
                self._block[self._used : self._used + len(part)] = part[:room]
                self._used += min(room, len(part))
                part = part[room:]
                if self._used == len(self._block):
                    yield self._block.reshape(-1, self._length).copy()
                    self._used = 0

    def finish(self) -> Iterator[Tokens]:
        """Yield the rest, uint32 [at most block_rows, T], if there is one."""
        if rows := -(-self._used // self._length):  # rounded up
            self.padding += rows * self._length - self._used
            self._block[self._used : rows * self._length] = self._pad_id
            yield self._block[: rows * self._length].reshape(rows, self._length).copy()
            self._used = 0
