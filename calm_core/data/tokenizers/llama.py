"""Llama 3's tokenizer.model: the ranks of a byte-level BPE; its pattern and special tokens are part of the format."""

import base64
import binascii
import json
from typing import Any

import tokenizers

from calm_core.data.tokenizers.byte_level import byte_of_symbol
from calm_core.errors import CalmError
from calm_core.store import storage

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = (
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
PAD_TOKEN, EOS_TOKEN = "<|finetune_right_pad_id|>", "<|end_of_text|>"


def read(uri: str) -> tokenizers.Tokenizer:
    """A tokenizer.model as a tokenizer of the library tokenizers, with the same ids.

    Raises:
        CalmError: There is none, or it is of another format.
    """
    ranks = _ranks(uri)
    symbols = {byte: symbol for symbol, byte in byte_of_symbol().items()}
    names = {token: "".join(symbols[byte] for byte in token) for token in ranks}
    settings = {
        "version": "1.0",
        "added_tokens": [_special_token(len(ranks) + i, name) for i, name in enumerate(_SPECIAL)],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a word that is a token is that token, however it would be merged
            "vocab": {names[token]: rank for token, rank in ranks.items()},
            "merges": [[names[left], names[right]] for left, right in _merges(ranks)],
        },
    }
    return tokenizers.Tokenizer.from_str(json.dumps(settings))


def _ranks(uri: str) -> dict[bytes, int]:
    """A line for each token: its bytes in base64, and its rank."""
    try:
        lines = [line.split() for line in storage.read(uri).splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        all_bytes = {bytes([byte]) for byte in range(256)}
        if sorted(ranks.values()) != list(range(len(lines))) or not ranks.keys() >= all_bytes:
            raise ValueError("tokens or ranks are missing")
    except FileNotFoundError:
        raise CalmError(f"{uri}: no such file; check tokenizer.source") from None
    except (ValueError, binascii.Error):
        raise CalmError(f"{uri}: is no Llama-3 tokenizer.model (a line of base64 and rank for each token)") from None
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that the ranks stand for, in their order.

    A BPE of ranks merges whichever neighbours make the token of the lowest rank, so each split of a token into two
    tokens is a merge; of one token's splits, those into tokens of lower ranks come first.
    """
    splits = [
        (ranks[token], ranks[token[:i]], ranks[token[i:]], token[:i], token[i:])
        for token in ranks
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    return [(left, right) for *_, left, right in sorted(splits)]


def _special_token(number: int, name: str) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": f"<|{name}|>", "special": True, **plain}
