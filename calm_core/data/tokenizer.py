"""A byte-level BPE tokenizer: any text becomes tokens and comes back unchanged."""

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_core.errors import ArtifactError

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|endoftext|>"


class Tokenizer:
    """Text to token ids and back; special tokens spelled out in a text stay ordinary text."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.pad_id = _special_id(backend, PAD_TOKEN)
        self.eos_id = _special_id(backend, EOS_TOKEN)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from texts; the same texts in the same order give the same tokenizer."""
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD_TOKEN, EOS_TOKEN],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Tokenizer":
        """Read the content of a tokenizer.json."""
        return cls(tokenizers.Tokenizer.from_buffer(data))

    def to_bytes(self) -> bytes:
        """The content of a tokenizer.json."""
        return bytes(self._backend.to_str(pretty=True).encode("utf-8"))

    @property
    def vocab_size(self) -> int:
        """Number of tokens; below the asked size when the texts held too few different words."""
        return int(self._backend.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise ArtifactError(f"the tokenizer has no token {token}; it was not made by this pipeline")
    return int(number)
