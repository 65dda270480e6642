"""Packing against a version with plain lists, one token at a time."""

import random

import numpy as np
import pytest

from calm_core.data.packing import Packer

PAD, EOS = 0, 1


def pack(
    documents: list[list[int]], sequence_length: int, document_alignment: int, block_rows: int = 2
) -> list[list[int]]:
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


def random_documents(seed: int) -> list[list[int]]:
    """Up to 30 documents of 0 to 40 tokens; every token is its document's number, plus 2 for PAD and EOS."""
    numbers = random.Random(seed)
    return [[number + 2] * numbers.randrange(40) for number in range(numbers.randrange(1, 30))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_rows", [1, 3, 100])
@pytest.mark.parametrize(("length", "alignment"), [(16, 8), (16, 16), (12, 1)])
def test_equals_the_plain_version(length: int, alignment: int, seed: int, block_rows: int) -> None:
    documents = random_documents(seed)
    assert pack(documents, length, alignment, block_rows) == plain_pack(documents, length, alignment)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 8])
def test_no_chunk_holds_two_documents(chunk_size: int) -> None:
    """One data set serves every K that divides the alignment."""
    packed = pack(random_documents(9), sequence_length=24, document_alignment=8)
    for chunk in np.array(packed).reshape(-1, chunk_size).tolist():
        assert len(set(chunk) - {PAD, EOS}) <= 1
        after_eos = chunk[chunk.index(EOS) + 1 :] if EOS in chunk else []
        assert set(after_eos) <= {PAD}


def test_no_documents_are_no_sequences() -> None:
    assert pack([], sequence_length=16, document_alignment=8) == []
