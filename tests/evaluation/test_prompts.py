"""Prompts where nobody names any."""

import json
from pathlib import Path

import pytest

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.reading.dataset import Dataset, open_dataset
from calm_core.data.stage import prepare_data
from calm_core.errors import CalmError
from calm_core.evaluation.prompts import beginnings


def prepared(folder: Path, documents: list[str], **changes: object) -> Dataset:
    """The held-out split of a dataset."""
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    config = {"sources": (str(source),), "sequence_length": 64, "document_alignment": 8, "validation_fraction": 0.5}
    data = DataConfig.model_validate(config | changes)
    return open_dataset(prepare_data(data, TokenizerConfig(vocab_size=300), str(folder / "data")).uri, "validation")


TEXTS = [
    f"number{number} is what  this one\nsays first, and then it goes on for some words more" for number in range(30)
]


@pytest.mark.parametrize("packing", [{}, {"packing": "contiguous", "start_of_text": True}, {"start_of_text": True}])
def test_they_are_whole_words_that_held_out_documents_begin_with(packing: dict[str, object], tmp_path: Path) -> None:
    """With their spaces and line breaks."""
    dataset = prepared(tmp_path, TEXTS, **packing)
    found = beginnings(dataset, number=4)
    assert len(set(found)) == 4
    for prompt in found:
        text = next(text for text in TEXTS if text.startswith(prompt))
        assert text[len(prompt)].isspace() and 2 <= len(prompt.split()) <= 10
    assert beginnings(dataset, number=4) == found


def test_a_short_document_keeps_a_word_for_the_model(tmp_path: Path) -> None:
    assert set(beginnings(prepared(tmp_path, [f"two words{number}" for number in range(20)]))) == {"two"}


def test_text_without_spaces_is_cut_at_a_character(tmp_path: Path) -> None:
    """No half of one is left."""
    texts = [chr(0x4E00 + number) * 3 + "中文没有空格" * 20 for number in range(20)]
    for prompt in beginnings(prepared(tmp_path, texts), number=20):
        assert prompt and any(text.startswith(prompt) for text in texts)


def test_ten_words_are_enough(tmp_path: Path) -> None:
    texts = [f"{number} a b c\n d  e f g h i j k " * 30 for number in range(20)]
    for prompt in beginnings(prepared(tmp_path, texts, sequence_length=256)):
        assert prompt.split()[1:] == [*"abcdefghi"] and "\n d  e" in prompt


def test_where_no_document_is_seen_to_begin_sequences_do(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, [" ".join(f"word{number}" for number in range(400))], validation_fraction=1)
    found = beginnings(dataset, number=2)
    assert len(found) == 2 and all(prompt.strip() == prompt != "" for prompt in found)


def test_what_the_tokenizer_would_refuse_is_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(tmp_path, TEXTS)
    first, *others = beginnings(dataset, number=20)
    encode = dataset.tokenizer.encode

    def refuse_one(text: str) -> list[int]:
        if text == first:
            raise CalmError("this tokenizer cannot read it")
        return encode(text)

    monkeypatch.setattr(dataset.tokenizer, "encode", refuse_one)
    assert list(beginnings(dataset, number=20)) == others
