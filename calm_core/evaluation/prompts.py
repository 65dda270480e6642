"""What a model continues where nobody names prompts: how held-out documents begin."""

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from calm_core.data.reading.dataset import Dataset
from calm_core.errors import CalmError

_LOOKED_AT = 256  # sequences, so many as are scored unless the settings say otherwise
_TOKENS = 64  # of a document, at most
_WORDS = re.compile(r"\s*\S+(?:\s+\S+){,9}")  # ten at most
_LAST_WORD = re.compile(r"(?<=\S)\s+\S*$")  # the tokens may end inside it


def beginnings(dataset: Dataset, number: int = 3) -> tuple[str, ...]:
    """The first words of some documents of a split; the same data give the same ones.

    Where no document is seen to begin (they are long, or packed with nothing between them), sequences count as such.

    Args:
        dataset: The held-out split.
        number: How many at most; they differ.
    """
    tokens = min(_TOKENS, dataset.sequence_length // 2)
    rows = dataset.rows(np.arange(min(dataset.num_sequences, _LOOKED_AT)))
    starts = [(row, start) for row in rows for start in _starts(dataset, row) if start + tokens <= len(row)]
    texts = [_words(dataset, row[start : start + tokens]) for row, start in starts]
    texts = texts or [_words(dataset, row[:tokens]) for row in rows]
    found = [text for text in dict.fromkeys(filter(None, texts)) if _can_be_read(dataset, text)]
    chosen = np.unique(np.linspace(0, len(found) - 1, number).astype(np.int64)) if found else ()
    return tuple(found[place] for place in chosen)


def _can_be_read(dataset: Dataset, text: str) -> bool:
    """Whether the tokenizer takes what it has written: some cannot spell each of their own special tokens."""
    try:
        return bool(dataset.tokenizer.encode(text))
    except CalmError:
        return False


def _starts(dataset: Dataset, row: npt.NDArray[np.int64]) -> Iterator[int]:
    """Where documents begin in a sequence, int64 [T]."""
    first = dataset.eos_id if dataset.bos_id is None else dataset.bos_id  # what stands before a document
    for place in np.flatnonzero(row == first).tolist():
        after = np.flatnonzero(row[place + 1 :] != dataset.pad_id)
        if len(after):
            yield place + 1 + int(after[0])


def _words(dataset: Dataset, tokens: npt.NDArray[np.int64]) -> str:
    special = (dataset.eos_id, dataset.pad_id, dataset.bos_id)
    ends = np.flatnonzero(np.isin(tokens, [token for token in special if token is not None]))
    text = dataset.tokenizer.decode(tokens[: ends[0] if len(ends) else None].tolist())
    words = _WORDS.match(_LAST_WORD.sub("", text).rstrip("\ufffd"))
    return words[0].strip() if words else ""
