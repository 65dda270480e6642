"""Which split a document belongs to."""

import hashlib

from calm_core.store.facts import Split


def split_of(text_hash: bytes, validation_fraction: float) -> Split:
    """A document's split, from the hash of its text: it stays the same when data is added or reordered."""
    share = int.from_bytes(text_hash[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def text_hash(text: bytes) -> bytes:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text).digest()
