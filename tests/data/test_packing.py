"""Packing against a version with plain lists, one token at a time."""

import random

import pytest

from calm_core.data.packing import pack

PAD, EOS = 0, 1


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
@pytest.mark.parametrize(("length", "alignment"), [(16, 8), (16, 16), (12, 1)])
def test_equals_the_plain_version(length: int, alignment: int, seed: int) -> None:
    documents = random_documents(seed)
    packed = pack(documents, sequence_length=length, document_alignment=alignment, pad_id=PAD, eos_id=EOS)
    assert packed.tolist() == plain_pack(documents, length, alignment)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 8])
def test_no_chunk_holds_two_documents(chunk_size: int) -> None:
    """One data set serves every K that divides the alignment."""
    packed = pack(random_documents(9), sequence_length=24, document_alignment=8, pad_id=PAD, eos_id=EOS)
    for chunk in packed.reshape(-1, chunk_size).tolist():
        assert len(set(chunk) - {PAD, EOS}) <= 1
        after_eos = chunk[chunk.index(EOS) + 1 :] if EOS in chunk else []
        assert set(after_eos) <= {PAD}


def test_no_documents_are_no_sequences() -> None:
    assert pack([], sequence_length=16, document_alignment=8, pad_id=PAD, eos_id=EOS).shape == (0, 16)
