"""Llama 3's tokenizer.model: a line for each token, its bytes in base64 and its rank.

The file holds the ranks alone; the pattern that splits words, and the special tokens, are part of the format.
"""

import base64
import json
from typing import Any

import tokenizers

from calm_core.data.tokenizers.byte_level import byte_of_symbol
from calm_core.errors import CalmError
from calm_core.store import storage

PAD_TOKEN, EOS_TOKEN, BOS_TOKEN = "<|finetune_right_pad_id|>", "<|end_of_text|>", "<|begin_of_text|>"

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL_TOKENS = (
    BOS_TOKEN,
    EOS_TOKEN,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    PAD_TOKEN,
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{2 + i}|>" for i in range(244)),
)

MAX_FILE_BYTES = 64 * 2**20  # many times Llama 3's own
_LONGEST_TOKEN = 256  # bytes, twice Llama 3's longest; the ways to cut a token take time that grows with its square

Ranks = dict[bytes, int]


def read_tokenizer(uri: str) -> tokenizers.Tokenizer:
    """Read a tokenizer.model as what tokenizer.json would hold for it; the ranks are the ids.

    Raises:
        CalmError: There is no such file, or it is of another kind.
    """
    ranks = _read_ranks(uri)
    settings = {
        "version": "1.0",
        "added_tokens": [_added_token(len(ranks) + i, token) for i, token in enumerate(_SPECIAL_TOKENS)],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(ranks),
    }
    return tokenizers.Tokenizer.from_str(json.dumps(settings))


def _read_ranks(uri: str) -> Ranks:
    try:
        lines = [line.split() for line in storage.read(uri, 0, MAX_FILE_BYTES).splitlines() if line]
        entries = [(base64.b64decode(token, validate=True), int(rank)) for token, rank in lines]
    except FileNotFoundError:
        raise CalmError(f"{uri}: no such file; check tokenizer.source") from None
    except ValueError:  # also of base64, and of a line that has not two parts
        entries = []
    ranks = dict(entries)
    # The special tokens' ids follow the last rank, so there may be no gap; and every text must have tokens.
    without_gap = sorted(rank for _, rank in entries) == list(range(len(ranks)))
    is_short = all(len(token) <= _LONGEST_TOKEN for token in ranks)
    if not without_gap or not is_short or not ranks.keys() >= {bytes([byte]) for byte in range(256)}:
        raise CalmError(f"{uri}: is no Llama-3 tokenizer.model (a line of base64 and rank for each token)")
    return ranks


def _added_token(number: int, token: str) -> dict[str, Any]:
    places = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **places, "special": True}


def _bpe(ranks: Ranks) -> dict[str, Any]:
    """A byte-pair encoding that merges like tiktoken, from the ranks alone.

    tiktoken merges the neighbours whose union has the lowest rank. tokenizers wants pairs in their order instead: each
    way to cut a token into two others is one, ordered by the rank of the whole. A word that is a token is taken whole
    (`ignore_merges`), also where no merges lead to it.
    """
    symbols = {byte: symbol for symbol, byte in byte_of_symbol().items()}
    names = {token: "".join(symbols[byte] for byte in token) for token in ranks}
    merges = sorted(
        (rank, ranks[token[:i]], ranks[token[i:]], names[token[:i]], names[token[i:]])
        for token, rank in ranks.items()
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    )
    return {
        "type": "BPE",
        "ignore_merges": True,
        "vocab": {names[token]: rank for token, rank in ranks.items()},
        "merges": [[left, right] for *_, left, right in merges],
    }
