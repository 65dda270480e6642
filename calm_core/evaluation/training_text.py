"""What a model has read in training, as far as it is looked at: how often tokens occur, and which 4-grams do."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calm_core.data.reading.dataset import Dataset, open_dataset
from calm_core.data.reading.order import Numbers
from calm_core.evaluation.brier import MAX_N

SEQUENCES = 4096
"""The first ones of the training split; no more are looked at."""
GRAM_TOKENS = 2**24
"""Tokens of those whose 4-grams are remembered, at most: 128 MiB."""

_BLOCK = 64  # sequences that are read at a time
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, of mixed bits: 2^64 divided by the golden ratio

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class TrainingText:
    """The first training sequences of a dataset.

    Attributes:
        counts_V: int64, how often each token occurs; of held-out text where nothing is for training.
        known: The 4-grams that occur, as sorted hashes; None where nothing is for training.
    """

    counts_V: Tensor
    known: Hashes | None

    @classmethod
    def read(cls, dataset_uri: str) -> "TrainingText":
        """Read it.

        Raises:
            ArtifactError: The dataset is missing or damaged.
        """
        dataset = open_dataset(dataset_uri, "train")
        is_training = dataset.num_sequences > 0
        if not is_training:  # a set that is held out whole
            dataset = open_dataset(dataset_uri, "validation")
        counts_V, hashes = torch.zeros(dataset.vocab_size, dtype=torch.int64), []
        left = GRAM_TOKENS if is_training else 0
        for rows in _blocks(dataset):
            counts_V += torch.bincount(torch.from_numpy(rows).flatten(), minlength=dataset.vocab_size)
            rows = rows[: left // dataset.sequence_length]
            left -= rows.size
            hashes.append(_grams(rows, dataset))
        counts_V[dataset.pad_id] = 0
        return cls(counts_V, np.unique(np.concatenate(hashes)) if is_training else None)

    @property
    def frequencies(self) -> Tensor:
        """Share of each token among the real ones, fp64 [V]; the model that ignores all context."""
        return self.counts_V.double() / self.counts_V.sum()

    def number_known(self, tokens_N4: Numbers) -> int:
        """How many of these 4-grams occur in it; none where nothing is for training."""
        if self.known is None or not len(self.known):
            return 0
        hashes = hash_of(tokens_N4, len(self.counts_V))
        places = np.searchsorted(self.known, hashes).clip(max=len(self.known) - 1)
        return int((self.known[places] == hashes).sum())


def hash_of(tokens_N4: Numbers, vocab_size: int) -> Hashes:
    """One number for four tokens each, uint64 [N]: the same for the same ones.

    Of a vocabulary of 65,536 and less no two 4-grams share a number. Of a larger one some may, but 2^24 remembered
    ones are one in 2^40 of all numbers.
    """
    multiplier = np.uint64(vocab_size if vocab_size <= 2**16 else _MULTIPLIER)
    hashes = np.zeros(len(tokens_N4), np.uint64)
    for place in range(MAX_N):
        hashes = hashes * multiplier + tokens_N4[:, place].astype(np.uint64)  # modulo 2^64
    return hashes


def _blocks(dataset: Dataset) -> Iterator[Numbers]:
    number = min(dataset.num_sequences, SEQUENCES)
    for start in range(0, number, _BLOCK):
        yield dataset.rows(np.arange(start, min(start + _BLOCK, number)))


def _grams(rows_RT: Numbers, dataset: Dataset) -> Hashes:
    """Hashes of all four real tokens in a row of some sequences."""
    windows = np.lib.stride_tricks.sliding_window_view(rows_RT, MAX_N, axis=1).reshape(-1, MAX_N)
    return np.unique(hash_of(windows[(windows != dataset.pad_id).all(1)], dataset.vocab_size))
