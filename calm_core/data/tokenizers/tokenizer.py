"""Tokenizers: our own byte-level BPE, which gives back any text unchanged, and those from elsewhere."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_core.data.tokenizers import llama, trial
from calm_core.errors import ArtifactError, CalmError
from calm_core.shown import visible
from calm_core.store import nearby, storage

PAD_TOKEN, EOS_TOKEN, BOS_TOKEN = "<|pad|>", "<|endoftext|>", "<|startoftext|>"

MAX_FILE_BYTES = 256 * 2**20  # of a tokenizer.json from elsewhere: several times the largest known one
_MAX_SETTINGS_BYTES = 16 * 2**20  # of a file beside it
_MAX_VOCABULARY = 2**24  # the embedding has a row for every id up to the highest
_LONGEST_TRAINED_WORD = 256  # bytes of a word that the trainer sees as one
_UNKNOWN_TEXT = "\U0010fffd"  # of private use: hardly any vocabulary has it


class Tokenizer:
    """Text to token ids and back; special tokens spelled out in a text stay ordinary text.

    No text is ever encoded with `pad_id`, `eos_id` or `bos_id`.

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
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        # The trainer's time is quadratic in the length of a word, so it sees a very long one in pieces.
        pieces = pre_tokenizers.FixedLength(_LONGEST_TRAINED_WORD)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD_TOKEN, EOS_TOKEN, *([BOS_TOKEN] if start_of_text else [])],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.pre_tokenizer = words
        return cls(backend, bos_id=_special_id(backend, BOS_TOKEN) if start_of_text else None)

    @classmethod
    def from_bytes(
        cls, data: bytes, pad_id: int | None = None, eos_id: int | None = None, bos_id: int | None = None
    ) -> "Tokenizer":
        """Read the content of a tokenizer.json.

        Raises:
            CalmError: It is none.
        """
        return cls(_read_backend(data, "tokenizer.json"), pad_id, eos_id, bos_id)

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
        """Read a tokenizer.json, a folder in Hugging Face's format, or Llama 3's tokenizer.model, to train with.

        Args:
            source: The file or folder, local or on any fsspec URL.
            pad_token, eos_token, bos_token: Names of the special tokens; unset, as the format or the files beside it
                say.
            start_of_text: Whether documents begin with the third one.

        Raises:
            CalmError: There is no tokenizer, it is of another kind, it has no such token, or one of them is no
                token beside the text: two are the same, or a word of a text is one.
        """
        tokenizer = cls._load(source, pad_token, eos_token, bos_token, start_of_text)
        tokenizer._require_own_special_tokens(source)
        return tokenizer

    @classmethod
    def _load(
        cls, source: str, pad_token: str | None, eos_token: str | None, bos_token: str | None, start_of_text: bool
    ) -> "Tokenizer":
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
                    return cls._load(model, pad_token, eos_token, bos_token, start_of_text)
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
        source = storage.join(uri, file_name)
        try:
            data = storage.read(source, 0, MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            there = f"it {nearby.holds(storage.kinds_in(uri))}" if storage.is_folder(uri) else nearby.hint(uri)
            raise CalmError(f"{uri}: holds no {file_name}; name a folder in Hugging Face's format ({there})") from None
        if len(data) > MAX_FILE_BYTES:
            raise CalmError(f"{source}: has more than {MAX_FILE_BYTES:,} bytes, as no tokenizer.json has")
        if complaint := trial.complaint(data):
            raise CalmError(f"{source}: is no tokenizer.json that can be used ({visible(complaint)})")
        backend = _read_backend(data, source)
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

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for text which the vocabulary does not have."""
        model = self._backend.model
        if isinstance(model, models.Unigram):
            number = json.loads(self._backend.to_str())["model"]["unk_id"]
        else:
            number = self._backend.token_to_id(model.unk_token) if model.unk_token else None
        return None if number is None else int(number)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Tokens that no text may become; the unknown token is one that it may."""
        added = self._backend.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special} - {self.unknown_id}
        return frozenset(special | self._roles.keys())

    @cached_property
    def _roles(self) -> dict[int, str]:
        """What the special tokens of documents stand for."""
        roles = {self.pad_id: "padding", self.eos_id: "the end of a document"}
        return roles if self.bos_id is None else {self.bos_id: "the start of a document"} | roles

    def count_unknown(self, ids: npt.NDArray[np.uint32]) -> int:
        """How many tokens stand for text that the vocabulary does not have."""
        return 0 if self.unknown_id is None else int(np.count_nonzero(ids == self.unknown_id))

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name, which is its text in some vocabularies alone; None where there is none."""
        number: int | None = self._backend.token_to_id(name)
        return number

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens.

        Raises:
            CalmError: The tokenizer cannot encode it, or cannot tell a word of it from the end of a document or from
                padding.
        """
        ids = self._encode(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        return [part for number in ids for part in self._as_text(number)]

    def _encode(self, text: str) -> list[int]:
        with _named_failures("encode"):
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        with _named_failures("decode"):
            text: str = self._backend.decode(
                [number for number in ids if number not in self._roles], skip_special_tokens=True
            )
        return text

    def _as_text(self, number: int) -> Sequence[int]:
        """The token itself; of a special token, which some vocabularies find in a text, others that spell it."""
        if number not in self._special_ids:
            return (number,)
        if spelled := self._spelled.get(number):
            return spelled
        if role := self._roles.get(number):
            raise CalmError(
                f"the text holds {self._shown(number)}, which this tokenizer cannot tell from {role}; take another one"
            )
        return (number,)

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """Special tokens as text: tokens of their characters, where these put together give them again."""
        spelled = {number: self._characters(number) for number in self._special_ids}
        return {
            number: ids
            for number, ids in spelled.items()
            if self._special_ids.isdisjoint(ids) and self.decode(ids) == self._backend.id_to_token(number)
        }

    def _characters(self, number: int) -> list[int]:
        """Tokens of the characters of a token's name, as far as there are any, or of their bytes."""
        prefix = getattr(self._backend.model, "continuing_subword_prefix", None) or ""
        ids: list[int | None] = []
        for i, character in enumerate(self._backend.id_to_token(number) or ""):
            whole = self.id_of(prefix * (i > 0) + character)
            ids += [whole] if whole is not None else [self.id_of(f"<0x{byte:02X}>") for byte in character.encode()]
        return [one for one in ids if one is not None]

    def _require_own_special_tokens(self, source: str) -> None:
        """Raise a CalmError where padding, or a document's end or start, is nothing of its own: a text may hold it."""
        if self.pad_id == self.eos_id:
            raise CalmError(
                f"{source}: {self._shown(self.pad_id)} is both padding and the end of a document, so that a model "
                "never learns to stop; name another special token with tokenizer.pad_token, or add one to the file"
            )
        if self.bos_id == self.pad_id:
            raise CalmError(
                f"{source}: {self._shown(self.pad_id)} is both padding and the start of a document; name another "
                "special token with tokenizer.bos_token"
            )
        added = self._backend.get_added_tokens_decoder()
        ids = {"pad_token": self.pad_id, "eos_token": self.eos_id, "bos_token": self.bos_id}
        for role, number in ids.items():
            if number is None:
                continue
            name = self._backend.id_to_token(number)
            with _named_failures("decode"):
                word = self._backend.decode([number], skip_special_tokens=False)
            texts = [form.format(text) for text in (name, word) for form in ("{}", " {}", "a{}a", "a {} a", "\n{}\n")]
            found = any(self._gives(number, text) for text in (*texts, _UNKNOWN_TEXT, f"a {_UNKNOWN_TEXT}"))
            is_special = number in added and added[number].special and number != self.unknown_id
            if found and is_special and number not in self._spelled:
                raise CalmError(
                    f"{source}: this tokenizer finds the {role} {self._shown(number)} in a text that spells it, and "
                    f"has no tokens to spell it otherwise; name another with tokenizer.{role}, or add characters"
                )
            if found and not is_special:
                raise CalmError(
                    f"{source}: the {role} {self._shown(number)} is an ordinary word of this tokenizer, which a text "
                    f"may hold; name a special token with tokenizer.{role}, or add one to the file"
                )

    def _gives(self, number: int, text: str) -> bool:
        try:
            return number in self._encode(text)
        except CalmError:  # a vocabulary need not have every character
            return False

    def _shown(self, number: int) -> str:
        return visible(self._backend.id_to_token(number) or str(number))[:80]


def is_failure(error: BaseException) -> bool:
    """Whether a library has failed: pyo3's PanicException is no Exception, and no module has it to import."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def _named_failures(doing: str) -> Iterator[None]:
    """Turn what the library raises, its panics too, into a CalmError."""
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CalmError(f"the tokenizer cannot {doing} this text ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return visible((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def _read_backend(data: bytes, source: str) -> tokenizers.Tokenizer:
    """What a tokenizer.json holds.

    Raises:
        CalmError: It is none, or no model can have its vocabulary.
    """
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CalmError(f"{source}: is no tokenizer.json ({_reason(error)})") from None
    ids = backend.get_vocab(with_added_tokens=True).values()
    if not ids or max(ids) >= _MAX_VOCABULARY:
        what = f"has a token with the id {max(ids):,}; the highest possible is {_MAX_VOCABULARY - 1:,}" if ids else ""
        raise CalmError(f"{source}: {what or 'has no tokens'}")
    if isinstance(backend.model, models.BPE):
        backend.model.dropout = None  # would encode a text differently each time
    return backend


def _named_id(backend: tokenizers.Tokenizer, uri: str, role: str, name: str) -> int:
    try:
        number = backend.token_to_id(name)
    except UnicodeEncodeError:  # half a character is in no vocabulary
        number = None
    if number is None:
        raise CalmError(f"{uri}: the tokenizer has no token {visible(name)[:80]}; name one with tokenizer.{role}")
    return int(number)


def _special_names(uri: str) -> dict[str, str]:
    """Special tokens by their role, as the files beside a tokenizer.json name them."""
    names: dict[str, str] = {}
    for file_name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not storage.exists(storage.join(uri, file_name)):
            continue
        try:
            tokens = dict(json.loads(storage.read(storage.join(uri, file_name), 0, _MAX_SETTINGS_BYTES)))
        except (ValueError, TypeError, RecursionError):
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
