"""A byte-level BPE tokenizer: any text becomes tokens and comes back unchanged."""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_core.data.tokenizers import llama
from calm_core.errors import ArtifactError, CalmError, first_line
from calm_core.store import storage

PAD_TOKEN, EOS_TOKEN, BOS_TOKEN = "<|pad|>", "<|endoftext|>", "<|startoftext|>"


class Tokenizer:
    """Text to token ids and back; special tokens spelled out in a text stay ordinary text.

    Args:
        backend: What encodes and decodes.
        pad_id: The token that fills chunks up; unset, the id of PAD_TOKEN.
        eos_id: The token that ends a document; unset, the id of EOS_TOKEN.
        bos_id: The token that begins a document; None: none does.

    Raises:
        ArtifactError: A token is unset, and the backend has none of that name.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        pad_id: int | None = None,
        eos_id: int | None = None,
        bos_id: int | None = None,
    ) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.pad_id = _special_id(backend, PAD_TOKEN) if pad_id is None else pad_id
        self.eos_id = _special_id(backend, EOS_TOKEN) if eos_id is None else eos_id
        self.bos_id = bos_id

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, start_of_text: bool = False) -> "Tokenizer":
        """Learn merges from texts; the same texts in the same order give the same tokenizer.

        With `start_of_text` it has a token that begins a document.
        """
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD_TOKEN, EOS_TOKEN, *([BOS_TOKEN] if start_of_text else [])],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend, bos_id=_special_id(backend, BOS_TOKEN) if start_of_text else None)

    @classmethod
    def from_bytes(
        cls, data: bytes, pad_id: int | None = None, eos_id: int | None = None, bos_id: int | None = None
    ) -> "Tokenizer":
        """Read the content of a tokenizer.json."""
        return cls(tokenizers.Tokenizer.from_buffer(data), pad_id, eos_id, bos_id)

    @classmethod
    def load(
        cls,
        source: str,
        pad_token: str | None = None,
        eos_token: str | None = None,
        bos_token: str | None = None,
        *,
        start_of_text: bool = False,
    ) -> "Tokenizer":
        """Read a tokenizer.json, a folder in Hugging Face's format, or Llama 3's tokenizer.model.

        Args:
            source: The file or folder, local or on any fsspec URL.
            pad_token, eos_token, bos_token: Names of the special tokens; unset, as the format or the files beside it
                say.
            start_of_text: Whether documents begin with the third one.

        Raises:
            CalmError: There is no tokenizer, it is of another kind, or it has no such token.
        """
        if source.endswith(".model"):
            backend = llama.read_tokenizer(source)
            pad_id = _named_id(backend, source, "pad_token", pad_token or llama.PAD_TOKEN)
            eos_id = _named_id(backend, source, "eos_token", eos_token or llama.EOS_TOKEN)
            bos_id = _named_id(backend, source, "bos_token", bos_token or llama.BOS_TOKEN) if start_of_text else None
            return cls(backend, pad_id, eos_id, bos_id)
        folder = source.rpartition("/")[0] or "." if source.endswith(".json") else source
        if not source.endswith(".json") and not storage.exists(storage.join(source, "tokenizer.json")):
            for model in (storage.join(source, "tokenizer.model"), storage.join(source, "original/tokenizer.model")):
                if storage.exists(model):
                    return cls.load(model, pad_token, eos_token, bos_token, start_of_text=start_of_text)
        file_name = source.rpartition("/")[2] if source.endswith(".json") else "tokenizer.json"
        return cls.from_folder(
            folder,
            pad_token=pad_token,
            eos_token=eos_token,
            bos_token=bos_token,
            start_of_text=start_of_text,
            file_name=file_name,
        )

    @classmethod
    def from_folder(
        cls,
        uri: str,
        pad_id: int | None = None,
        eos_id: int | None = None,
        *,
        pad_token: str | None = None,
        eos_token: str | None = None,
        bos_token: str | None = None,
        start_of_text: bool = False,
        end_fills_up: bool = False,
        file_name: str = "tokenizer.json",
    ) -> "Tokenizer":
        """Read a folder in Hugging Face's format: tokenizer.json, and names of special tokens in two more files.

        Args:
            uri: The folder, local or on any fsspec URL.
            pad_id, eos_id: Known ids; unset ones are looked up.
            pad_token, eos_token, bos_token: Their names; unset ones are those of tokenizer_config.json or
                special_tokens_map.json, or our own.
            start_of_text: Whether documents begin with the third one.
            end_fills_up: Without a padding token, take the end of text for it. A model that is trained like this never
                learns to stop, so it is for trained ones.
            file_name: The tokenizer's own file.

        Raises:
            CalmError: There is no tokenizer, or it has no such token.
        """
        try:
            backend = tokenizers.Tokenizer.from_buffer(storage.read(storage.join(uri, file_name)))
        except FileNotFoundError:
            raise CalmError(f"{uri}: holds no {file_name}; name a folder in Hugging Face's format") from None
        except ValueError as error:
            raise CalmError(f"{storage.join(uri, file_name)}: is no tokenizer.json ({first_line(error)})") from None
        names = {"pad_token": PAD_TOKEN, "eos_token": EOS_TOKEN, "bos_token": BOS_TOKEN} | _special_names(uri)
        if eos_id is None:
            eos_id = _named_id(backend, uri, "eos_token", eos_token or names["eos_token"])
        if pad_id is None and end_fills_up and backend.token_to_id(pad_token or names["pad_token"]) is None:
            pad_id = eos_id
        if pad_id is None:
            pad_id = _named_id(backend, uri, "pad_token", pad_token or names["pad_token"])
        bos_id = _named_id(backend, uri, "bos_token", bos_token or names["bos_token"]) if start_of_text else None
        return cls(backend, pad_id, eos_id, bos_id)

    def to_bytes(self) -> bytes:
        """The content of a tokenizer.json."""
        return bytes(self._backend.to_str(pretty=True).encode("utf-8"))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id; below the asked size when the texts held too few different words."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text


def _named_id(backend: tokenizers.Tokenizer, uri: str, role: str, name: str) -> int:
    number = backend.token_to_id(name)
    if number is None:
        raise CalmError(f"{uri}: the tokenizer has no token {name}; name one with tokenizer.{role}")
    return int(number)


def _special_names(uri: str) -> dict[str, str]:
    """Special tokens by their role, as the files beside a tokenizer.json name them."""
    names: dict[str, str] = {}
    for file_name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not storage.exists(storage.join(uri, file_name)):
            continue
        try:
            tokens = dict(json.loads(storage.read(storage.join(uri, file_name))))
        except (ValueError, TypeError):
            raise CalmError(f"{storage.join(uri, file_name)}: is no JSON object; mend or delete it") from None
        for role, token in tokens.items():
            name = token.get("content") if isinstance(token, dict) else token
            if role in ("pad_token", "eos_token", "bos_token") and isinstance(name, str):
                names[role] = name
    return names


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise ArtifactError(f"the tokenizer has no token {token}; it was not made by this pipeline")
    return int(number)
