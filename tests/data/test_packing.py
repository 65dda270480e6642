"""Packing against a version with plain lists, one token at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_core.data.preparing.packing import Packer

PAD, EOS = 0, 1


def pack(documents: list[list[int]], sequence_length: int, document_alignment: int, block_rows: int) -> list[list[int]]:
    packer = Packer(
        sequence_length=sequence_length,
        block_rows=block_rows,
        document_alignment=document_alignment,
        pad_id=PAD,
        eos_id=EOS,
    )
    blocks = [block for document in documents for block in packer.push(np.array(document, dtype=np.uint32))]
    assert all(len(block) == block_rows for block in blocks)
    rows = [row for block in [*blocks, *packer.finish()] for row in block.tolist()]
    assert packer.padding == sum(row.count(PAD) for row in rows)
    return rows


def plain_pack(documents: list[list[int]], length: int, alignment: int) -> list[list[int]]:
    stream: list[int] = []
    for document in documents:
        stream += [*document, EOS]
        while len(stream) % alignment:
            stream.append(PAD)
    while len(stream) % length:
        stream.append(PAD)
    return [stream[i : i + length] for i in range(0, len(stream), length)]


@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    alignment=st.integers(1, 12),
    units=st.integers(1, 4),
    block_rows=st.integers(1, 5),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_packing_equals_the_plain_version_and_no_chunk_holds_two_documents(
    lengths: list[int], alignment: int, units: int, block_rows: int
) -> None:
    """One dataset serves every K that divides the alignment; every token is its document's number."""
    documents = [[number + 2] * length for number, length in enumerate(lengths)]  # 0 and 1 are PAD and EOS
    packed = pack(documents, units * alignment, alignment, block_rows)
    assert packed == plain_pack(documents, units * alignment, alignment)
    for chunk_size in (k for k in range(1, alignment + 1) if alignment % k == 0):
        for chunk in np.array(packed, dtype=np.int64).reshape(-1, chunk_size).tolist():
            assert len(set(chunk) - {PAD, EOS}) <= 1
            assert set(chunk[chunk.index(EOS) + 1 :] if EOS in chunk else []) <= {PAD}


BOS = 2


@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    sequence_length=st.integers(1, 24),
    block_rows=st.integers(1, 5),
    alignment=st.integers(1, 12),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_contiguous_sequences_are_the_cut_stream_of_documents_and_nothing_else(
    lengths: list[int], sequence_length: int, block_rows: int, alignment: int
) -> None:
    """As the public code makes them: BOS and tokens of all documents in a row, cut, and the rest left out."""
    packer = Packer(
        sequence_length=sequence_length,
        block_rows=block_rows,
        document_alignment=alignment,  # counts for nothing
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        packing="contiguous",
    )
    documents = [[number + 3] * length for number, length in enumerate(lengths)]
    blocks = [block for document in documents for block in packer.push(np.array(document, dtype=np.uint32))]
    packed = np.concatenate([np.empty((0, sequence_length)), *blocks, *packer.finish()])
    stream = [token for document in documents for token in [BOS, *document]]
    rest = len(stream) % sequence_length
    assert packed.flatten().tolist() == stream[: len(stream) - rest]
    assert (packer.padding, packer.left_out, packer.added) == (0, rest, 1)


def test_documents_may_begin_with_a_token_too() -> None:
    """As the public code packs for its autoencoder; it counts where the padding is reckoned."""
    packer = Packer(sequence_length=8, block_rows=1, document_alignment=4, pad_id=PAD, eos_id=EOS, bos_id=BOS)
    documents = [np.array([7] * length, dtype=np.uint32) for length in (2, 3)]
    (row,) = [row for document in documents for block in packer.push(document) for row in block.tolist()]
    assert row == [BOS, 7, 7, EOS, BOS, 7, 7, 7]
    assert [row.tolist() for block in packer.finish() for row in block] == [[EOS] + [PAD] * 7]
    assert (packer.padding, packer.added) == (7, 2)
