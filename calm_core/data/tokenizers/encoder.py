"""The fastest engine that gives a tokenizer's ids: tiktoken where it does, else tokenizers itself."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tiktoken

from calm_core.data.tokenizers.byte_level import byte_of_symbol
from calm_core.data.tokenizers.tokenizer import Tokenizer, is_failure
from calm_core.data.tokenizers.trial import AWKWARD_TEXTS

Engine = Literal["tiktoken", "tokenizers"]
Encode = Callable[[str], npt.NDArray[np.uint32]]

# The split of GPT-2 that tokenizers' ByteLevel does by itself.
_BYTE_LEVEL_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# tiktoken's pattern engine runs out of stack on a million spaces, so texts with 10,000 in a row go to tokenizers. The
# look-behind lets a match begin at the first space of a run alone: tried at each of them, it would take quadratic time.
_LONG_SPACE = re.compile(r"\s(?<!\s\s)\s{9999}")
_CHECKED_TOKENS = 1024


def encoder(tokenizer: Tokenizer, engine: Engine) -> Encode:
    """What turns a text into token ids, uint32, without special tokens, by the chosen engine."""
    fast = _tiktoken(tokenizer) if engine == "tiktoken" else None

    def encode(text: str) -> npt.NDArray[np.uint32]:
        ids = None if fast is None or _LONG_SPACE.search(text) else _tried(fast, text)
        return np.array(tokenizer.encode(text), dtype=np.uint32) if ids is None else ids

    return encode


def choose_engine(tokenizer: Tokenizer, sample: Iterable[str]) -> tuple[Engine, str]:
    """The engine to encode with, and why it is not tiktoken (else empty).

    tiktoken is taken where the tokenizer is a byte-level BPE that it can express, and gives the same ids for a sample
    of texts, for awkward ones, and for tokens from all over the vocabulary. Such a tokenizer loses nothing: every byte
    of a text is part of a token.
    """
    fast = _tiktoken(tokenizer)
    if fast is None:
        return "tokenizers", "the tokenizer is no plain byte-level BPE"
    for text in _checked(tokenizer, sample):
        ids = _tried(fast, text)
        if ids is None or ids.tolist() != tokenizer.encode(text):
            return "tokenizers", f"tiktoken gives other ids for {text[:40]!r}"
    return "tiktoken", ""


def _tried(fast: Encode, text: str) -> npt.NDArray[np.uint32] | None:
    """A text's token ids; None where tiktoken's engine for patterns fails on it."""
    try:
        return fast(text)
    except BaseException as error:
        if not is_failure(error):
            raise
        return None


def _checked(tokenizer: Tokenizer, sample: Iterable[str]) -> Iterator[str]:
    """The texts that both engines must encode alike; tokens are taken at equal distances over the vocabulary."""
    yield from AWKWARD_TEXTS
    for number in range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // _CHECKED_TOKENS)):
        yield tokenizer.decode([number])
    yield from (text for text in sample if not _LONG_SPACE.search(text))


def _tiktoken(tokenizer: Tokenizer) -> Encode | None:
    """tiktoken with the ranks and the pattern of a byte-level BPE; None for any other tokenizer.

    tiktoken merges by rank, and its ids are the ranks. A tokenizer's ids need not be in the order of its merges, so
    what tiktoken gives is looked up in a table: `ids[rank]` is the tokenizer's id.
    """
    settings = json.loads(tokenizer.to_bytes())
    pattern, model = _pattern(settings.get("pre_tokenizer")), settings["model"]
    unusual = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
    if (
        pattern is None
        or settings.get("normalizer")
        or model.get("type") != "BPE"
        or any(model.get(name) for name in unusual)
        or any(not token["special"] for token in settings["added_tokens"])
        or (settings.get("decoder") or {}).get("type") != "ByteLevel"
    ):
        return None
    special = {token["content"] for token in settings["added_tokens"]}
    vocabulary = {token: number for token, number in model["vocab"].items() if token not in special}
    ranks = _ranks(vocabulary, model["merges"], model.get("ignore_merges", False))
    if ranks is None or {tokenizer.pad_id, tokenizer.eos_id} & {*vocabulary.values()}:
        return None
    try:
        encoding = tiktoken.Encoding("tokenizer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # not all patterns of tokenizers are patterns of tiktoken
        return None
    symbols = byte_of_symbol()
    ids = np.zeros(len(ranks), dtype=np.uint32)
    for token, number in vocabulary.items():
        ids[ranks[bytes(symbols[symbol] for symbol in token)]] = number
    lengths = np.array([len(token) for token in ranks], dtype=np.int64)  # in the order of the ranks

    def encode(text: str) -> npt.NDArray[np.uint32]:
        found = encoding.encode_to_numpy(text, disallowed_special=())
        if lengths[found].sum() != len(text.encode()):  # tiktoken leaves out what its pattern does not match
            raise ValueError
        return ids[found]

    return encode


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The pattern that a pre-tokenizer splits words with, if it is of a kind that tiktoken can follow."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _BYTE_LEVEL_PATTERN
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    return None


def _ranks(vocabulary: dict[str, int], merges: list[Any], ignore_merges: bool) -> dict[bytes, int] | None:
    """Each token's place in the order of merging, single bytes first; a dict serves as a set that keeps this order.

    None where a byte is no token, or where a token is made by no merge, unless it is still found as a whole word.
    """
    symbols = byte_of_symbol()
    order = dict.fromkeys(token for token in vocabulary if len(token) == 1)
    order |= dict.fromkeys("".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in merges)
    if ignore_merges:
        order |= dict.fromkeys(vocabulary)
    # A merge whose result is no token, a token without a merge, or a byte without a token: not what tiktoken can do.
    if order.keys() != vocabulary.keys() or not symbols.keys() <= vocabulary.keys():
        return None
    if any(symbol not in symbols for token in order for symbol in token):
        return None
    return {bytes(symbols[symbol] for symbol in token): rank for rank, token in enumerate(order)}
