"""The text of new tokens after a prompt: with tokenizers that write their spaces, or single bytes, in their own way."""

import random
from collections.abc import Callable, Sequence

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.generation.continuation import Continuation

CORPUS = ["the old port flows past the river, it's a café"] * 4
SPECIAL = ["<pad>", "</s>", "<unk>"]


def metaspace() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def word_piece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """Like Llama 2's."""
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    vocabulary |= {letter: len(vocabulary) + i for i, letter in enumerate("▁abcdefghiklmnoprstuvwxyz,")}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(SPECIAL)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


def tokenizer_of(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer.from_bytes(backend.to_str().encode(), 0, 1)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: Tokenizer.train(CORPUS, 300),
    "Metaspace": lambda: tokenizer_of(metaspace()),
    "WordPiece": lambda: tokenizer_of(word_piece()),
    "byte fallback": lambda: tokenizer_of(byte_fallback()),
}


@pytest.fixture(scope="module", params=TOKENIZERS.values(), ids=TOKENIZERS.keys())
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = request.param()
    return made


def pieces_of(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int], step: int) -> list[str]:
    continuation = Continuation(tokenizer, before)
    return [*(continuation.add(ids[i : i + step]) for i in range(0, len(ids), step)), continuation.finish()]


def test_the_space_before_the_first_word_is_kept(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the old port flows past the river")
    before = tokenizer.encode("the old port")
    assert ids[: len(before)] == before
    for step in (1, 2, 50):
        assert "".join(pieces_of(tokenizer, before, ids[len(before) :], step)) == " flows past the river"


def test_pieces_are_what_the_whole_has_more_than_the_prompt(tokenizer: Tokenizer) -> None:
    """Any tokens, as an untrained model writes them: halves of characters, spaces, unknown and special ones."""
    numbers = random.Random(0)
    for _ in range(300):
        before = tokenizer.encode(numbers.choice(["", "the", "the old ", "past the café", "it's\n", "日本"]))
        ids = [numbers.randrange(tokenizer.vocab_size) for _ in range(numbers.randrange(1, 30))]
        start, whole = tokenizer.decode(before), tokenizer.decode(before + ids)
        truth = whole[len(start) :] if whole.startswith(start) else tokenizer.decode(ids)
        for step in (1, 3, 30):
            assert "".join(pieces_of(tokenizer, before, ids, step)) == truth


def test_what_was_told_stands_when_a_broken_byte_follows() -> None:
    """With byte fallback one wrong byte makes a whole run of them unreadable, the good ones before it too."""
    tokenizer = tokenizer_of(byte_fallback())
    euro = tokenizer.encode("€")[1:]  # three bytes; the first token is the space before the text
    broken, a = tokenizer.id_of("<0xC3>"), tokenizer.id_of("a")
    assert len(euro) == 3
    assert broken is not None
    assert a is not None
    continuation = Continuation(tokenizer, [])
    told = "".join(continuation.add([token]) for token in [*euro, broken, a])
    assert told + continuation.finish() == tokenizer.decode([*euro, broken, a]) == "\ufffd" * 4 + "a"


def test_a_long_text_is_not_decoded_anew_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(CORPUS, 300)
    ids = tokenizer.encode("the old port flows " * 500)
    decoded: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda some: (decoded.append(len(some)), decode(some))[1])
    assert "".join(pieces_of(tokenizer, ids, ids, 4)) == "the old port flows " * 500
    assert sum(decoded) < 20 * len(ids)
