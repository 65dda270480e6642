"""Packing: token documents to sequences of equal length."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


def pack(
    documents: Iterable[Sequence[int] | npt.NDArray[np.uint32]],
    *,
    sequence_length: int,
    document_alignment: int,
    pad_id: int,
    eos_id: int,
) -> npt.NDArray[np.int64]:
    """Concatenate documents and cut them into sequences.

    Each document is its tokens, EOS, and padding up to a multiple of `document_alignment`, so that no chunk of a size
    that divides it straddles two documents. A document may go on in the next sequence; the last one is padded.

    Returns:
        int64 [sequences, sequence_length].
    """
    parts: list[npt.NDArray[np.int64]] = []
    for document in documents:
        length = len(document) + 1
        part = np.full(length + -length % document_alignment, pad_id, dtype=np.int64)
        part[: length - 1] = document
        part[length - 1] = eos_id
        parts.append(part)
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    stream = np.pad(stream, (0, -len(stream) % sequence_length), constant_values=pad_id)
    return stream.reshape(-1, sequence_length)
