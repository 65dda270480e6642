"""A byte-level BPE tokenizer: any text becomes tokens and comes back unchanged."""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_core.errors import ArtifactError, CalmError
from calm_core.store import storage

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|endoftext|>"

# Llama 3's tokenizer.model holds the ranks alone; its pattern and special tokens are part of the format.
_LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_SPECIAL = (
    "begin_of_text",
    "end_of_text",
    "reserved_special_token_0",
    "reserved_special_token_1",
    "finetune_right_pad_id",
    "step_id",
    "start_header_id",
    "end_header_id",
    "eom_id",
    "eot_id",
    "python_tag",
    "image",
    *(f"reserved_special_token_{2 + i}" for i in range(244)),
)
_LLAMA_PAD, _LLAMA_EOS = "<|finetune_right_pad_id|>", "<|end_of_text|>"


def byte_of_symbol() -> dict[str, int]:
    """The byte that each of the 256 printable symbols of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


class Tokenizer:
    """Text to token ids and back; special tokens spelled out in a text stay ordinary text.

    Args:
        backend: What encodes and decodes.
        pad_id: The token that fills chunks up; unset, the id of PAD_TOKEN.
        eos_id: The token that ends a document; unset, the id of EOS_TOKEN.

    Raises:
        ArtifactError: A token is unset, and the backend has none of that name.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_id: int | None = None, eos_id: int | None = None) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.pad_id = _special_id(backend, PAD_TOKEN) if pad_id is None else pad_id
        self.eos_id = _special_id(backend, EOS_TOKEN) if eos_id is None else eos_id

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
    def from_bytes(cls, data: bytes, pad_id: int | None = None, eos_id: int | None = None) -> "Tokenizer":
        """Read the content of a tokenizer.json."""
        return cls(tokenizers.Tokenizer.from_buffer(data), pad_id, eos_id)

    @classmethod
    def load(cls, source: str, pad_token: str | None = None, eos_token: str | None = None) -> "Tokenizer":
        """Read a tokenizer.json, a folder in Hugging Face's format, or Llama 3's tokenizer.model.

        Args:
            source: The file or folder, local or on any fsspec URL.
            pad_token, eos_token: Names of the special tokens; unset, as the format or the files beside it say.

        Raises:
            CalmError: There is no tokenizer, it is of another kind, or it has no such token.
        """
        if source.endswith(".model"):
            return cls._from_ranks(source, pad_token or _LLAMA_PAD, eos_token or _LLAMA_EOS)
        folder = source.rpartition("/")[0] or "." if source.endswith(".json") else source
        if not source.endswith(".json") and not storage.exists(storage.join(source, "tokenizer.json")):
            for model in (storage.join(source, "tokenizer.model"), storage.join(source, "original/tokenizer.model")):
                if storage.exists(model):
                    return cls.load(model, pad_token, eos_token)
        file_name = source.rpartition("/")[2] if source.endswith(".json") else "tokenizer.json"
        return cls.from_folder(folder, pad_token=pad_token, eos_token=eos_token, file_name=file_name)

    @classmethod
    def _from_ranks(cls, uri: str, pad_token: str, eos_token: str) -> "Tokenizer":
        """Read Llama 3's tokenizer.model: a line for each token, its bytes in base64 and its rank."""
        try:
            lines = [line.split() for line in storage.read(uri).splitlines() if line]
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
            if sorted(ranks.values()) != list(range(len(lines))) or not ranks.keys() >= {
                bytes([b]) for b in range(256)
            }:
                raise ValueError("tokens or ranks are missing")
        except FileNotFoundError:
            raise CalmError(f"{uri}: no such file; check tokenizer.source") from None
        except (ValueError, binascii.Error):
            raise CalmError(
                f"{uri}: is no Llama-3 tokenizer.model (a line of base64 and rank for each token)"
            ) from None
        symbols = {byte: symbol for symbol, byte in byte_of_symbol().items()}
        names = {token: "".join(symbols[byte] for byte in token) for token in ranks}
        splits = [
            (ranks[token], ranks[token[:i]], ranks[token[i:]], names[token[:i]], names[token[i:]])
            for token in ranks
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        special = [f"<|{name}|>" for name in _LLAMA_SPECIAL]
        settings = {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": len(ranks) + i,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for i, token in enumerate(special)
            ],
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": _LLAMA_PATTERN}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "ignore_merges": True,
                "vocab": {names[token]: rank for token, rank in ranks.items()},
                "merges": [[left, right] for *_, left, right in sorted(splits)],
            },
        }
        backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
        return cls(
            backend,
            _named_id(backend, uri, "pad_token", pad_token),
            _named_id(backend, uri, "eos_token", eos_token),
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
        end_fills_up: bool = False,
        file_name: str = "tokenizer.json",
    ) -> "Tokenizer":
        """Read a folder in Hugging Face's format: tokenizer.json, and names of special tokens in two more files.

        Args:
            uri: The folder, local or on any fsspec URL.
            pad_id, eos_id: Known ids; unset ones are looked up.
            pad_token, eos_token: Their names; unset ones are those of tokenizer_config.json or special_tokens_map.json,
                or our own.
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
            raise CalmError(f"{storage.join(uri, file_name)}: is no tokenizer.json ({error})") from None
        names = {"pad_token": PAD_TOKEN, "eos_token": EOS_TOKEN} | _special_names(uri)
        if eos_id is None:
            eos_id = _named_id(backend, uri, "eos_token", eos_token or names["eos_token"])
        if pad_id is None and end_fills_up and backend.token_to_id(pad_token or names["pad_token"]) is None:
            pad_id = eos_id
        if pad_id is None:
            pad_id = _named_id(backend, uri, "pad_token", pad_token or names["pad_token"])
        return cls(backend, pad_id, eos_id)

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
        raise CalmError(f"{uri}: the tokenizer has no token {name}; name one: --set tokenizer.{role}=...")
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
            if role in ("pad_token", "eos_token") and isinstance(name, str):
                names[role] = name
    return names


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise ArtifactError(f"the tokenizer has no token {token}; it was not made by this pipeline")
    return int(number)
