"""The text of tokens that follow other tokens."""

from collections.abc import Sequence

from calm_core.data.tokenizers.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"  # what the bytes of half a character decode to
_NEVER_IN_UTF8 = "<0xFF>"


class Continuation:
    """What tokens add to the text before them, as they come.

    Alone, tokens would mean another text: many tokenizers write no space before the first word. So the text of a token
    is what the whole has more than the part before it. Decoding all tokens again at every step would take quadratic
    time; the tokens since the last step but one are enough, once a step has ended in a whole character.

    Args:
        tokenizer: What decodes.
        before: The tokens that the text continues.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)  # those that the next ones may depend on
        self._known = len(self._ids)  # how many of them have been told as text
        self._told = 0  # characters that have been told of the others
        # Where bytes are tokens, one that can be no part of a character makes all the bytes before it unreadable.
        self._breaker = tokenizer.id_of(_NEVER_IN_UTF8)

    def add(self, ids: Sequence[int]) -> str:
        """The characters that are certain now; half a character is held back."""
        self._ids += ids
        text = self._text()
        certain = text.rstrip(_UNFINISHED)
        if self._breaker is not None:
            certain = _shared_beginning(certain, self._text(self._breaker))
        piece = certain[self._told :]
        self._told += len(piece)
        if certain == text and certain:
            self._ids, self._known, self._told = self._ids[self._known :], len(self._ids) - self._known, 0
        return piece

    def finish(self) -> str:
        """What was held back: a text that ends inside a character ends in U+FFFD."""
        return self._text()[self._told :]

    def _text(self, *more: int) -> str:
        """The text of all tokens after the known ones."""
        before = self._tokenizer.decode(self._ids[: self._known])
        whole = self._tokenizer.decode([*self._ids, *more])
        if whole.startswith(before):
            return whole[len(before) :]
        return self._tokenizer.decode([*self._ids[self._known :], *more])  # bytes that the text before cannot go with


def _shared_beginning(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
    return one[:length]
