"""Packing: token documents to sequences of equal length, as a stream."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from calm_core.store.facts import Packing

Tokens = npt.NDArray[np.uint32]


class Packer:
    """Concatenates documents and cuts them into sequences.

    `documents`: each one is its tokens, EOS, and padding up to a multiple of `document_alignment`, so that no chunk of
    a size that divides it straddles two. A document may go on in the next sequence; the last one is padded. With an
    alignment of 4 and T = 8, documents of 5 and 4 tokens become

        a a a a a E - -    b b b b E - - -    (E: EOS, -: padding)

    `contiguous`: nothing follows a document but the next one, and the rest that fills no sequence is left out. That is
    how the public code packs; with BOS in front, as there, documents of 5 and 4 tokens become

        B a a a a a B b    (B: BOS; left out: b b b)

    Args:
        sequence_length: T, tokens in a sequence.
        block_rows: Sequences that are handed out at a time; no more is kept.
        document_alignment: Of `documents`: they begin on a multiple of this many tokens; T is one, too.
        pad_id, eos_id: The special tokens.
        bos_id: The token that goes before each document; None: none does.
        packing: One of the two.

    Attributes:
        added: Special tokens of each document, padding left out.
        padding: Padding so far.
        left_out: Tokens that are in no sequence; known at the end.
    """

    def __init__(
        self,
        *,
        sequence_length: int,
        block_rows: int,
        document_alignment: int,
        pad_id: int,
        eos_id: int,
        bos_id: int | None = None,
        packing: Packing = "documents",
    ) -> None:
        self._length = sequence_length
        self._alignment = document_alignment
        self._pad_id = pad_id
        self._contiguous = packing == "contiguous"
        self._begin = np.array([] if bos_id is None else [bos_id], dtype=np.uint32)
        # EOS and the most padding that may follow it: the end of each document is the start of this.
        self._end = np.full(document_alignment, pad_id, dtype=np.uint32)
        self._end[0] = eos_id
        self._block = np.full(block_rows * sequence_length, pad_id, dtype=np.uint32)
        self._used = 0  # tokens of the block that is being filled
        self.added = len(self._begin) + (not self._contiguous)
        self.padding = self.left_out = 0

    def push(self, document: Tokens) -> Iterator[Tokens]:
        """Append a document; yields each block that it fills, uint32 [block_rows, T]."""
        for part in (self._begin, document, self._end_of(document)):
            yield from self.append(part)

    def append(self, tokens: npt.NDArray[np.unsignedinteger]) -> Iterator[Tokens]:
        """Append tokens as they stand: of documents that are packed already."""
        while len(tokens):
            room = len(self._block) - self._used
            # Both sides are cut where the block ends, so that they have equal lengths.
            self._block[self._used : self._used + len(tokens)] = tokens[:room]
            self._used += min(room, len(tokens))
            tokens = tokens[room:]
            if self._used == len(self._block):
                yield self._block.reshape(-1, self._length).copy()
                self._used = 0

    def _end_of(self, document: Tokens) -> Tokens:
        if self._contiguous:
            return self._end[:0]
        padding = -(len(document) + self.added) % self._alignment  # up to the next multiple
        self.padding += padding
        return self._end[: 1 + padding]

    def finish(self) -> Iterator[Tokens]:
        """Yield the rest, uint32 [at most block_rows, T], if there is one."""
        rows, rest = divmod(self._used, self._length)
        if self._contiguous:
            self.left_out = rest
        elif rest:
            self._block[self._used : (rows + 1) * self._length] = self._pad_id
            self.padding += self._length - rest
            rows += 1
        if rows:
            yield self._block[: rows * self._length].reshape(rows, self._length).copy()
        self._used = 0
