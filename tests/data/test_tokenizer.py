"""The tokenizer: any text comes back unchanged, and the same texts give the same tokenizer."""

import json
import os
import random
import subprocess
import sys

import pytest

from calm_core.data.tokenizers.encoder import encoder
from calm_core.data.tokenizers.tokenizer import EOS_TOKEN, PAD_TOKEN, Tokenizer

CORPUS = ["the river flows past the old port", "a small town lies near the river", "naïve café 日本 🙂"] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, 300)


def random_text(numbers: random.Random) -> str:
    """Up to 60 code points from all planes, without surrogates (which are no characters)."""
    points = [numbers.choice([0x80, 0x800, 0x10000, 0x110000]) for _ in range(numbers.randrange(60))]
    return "".join(chr(p) for p in map(numbers.randrange, points) if not 0xD800 <= p < 0xE000)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n\n \t\r\n", "".join(map(chr, range(256))), "👩‍👩‍👧 🏴󠁧󠁢󠁳󠁣󠁴󠁿 e\u0301", "\ufeff\u200b\u2028", "\U0010ffff"],
    ids=["empty", "space", "blank", "control", "emoji", "invisible", "last"],
)
def test_a_strange_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_texts_come_back_unchanged(tokenizer: Tokenizer) -> None:
    numbers = random.Random(0)
    texts = [random_text(numbers) for _ in range(300)]
    ids = [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(one) for one in ids] == texts


def test_special_tokens_spelled_out_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    """Also when the training texts are full of them: a merge must not become the special token."""
    spelled = f"{EOS_TOKEN}{PAD_TOKEN} a{EOS_TOKEN}\n{PAD_TOKEN}"
    for trained in (tokenizer, Tokenizer.train([spelled * 50], 400)):
        reread = Tokenizer.from_bytes(trained.to_bytes())
        ids = reread.encode(spelled)
        assert not {reread.eos_id, reread.pad_id} & set(ids)
        assert reread.decode(ids) == spelled


def test_real_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the port")
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == "the port"


def test_the_same_texts_give_the_same_bytes_in_every_process() -> None:
    program = (
        "import sys; from calm_core.data.tokenizers.tokenizer import Tokenizer; "
        f"sys.stdout.buffer.write(Tokenizer.train({CORPUS!r}, 300).to_bytes())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(outputs) == 1
    assert Tokenizer.from_bytes(outputs.pop()).vocab_size == 300


def test_a_tiny_text_gives_a_smaller_vocabulary_than_asked() -> None:
    """256 bytes, 2 special tokens, and the only merge there is."""
    assert Tokenizer.train(["ab ab"], 1000).vocab_size <= 256 + 2 + 2
    assert Tokenizer.train([], 1000).vocab_size == 256 + 2


def test_ids_with_gaps_count_up_to_the_highest(tokenizer: Tokenizer) -> None:
    """The type of the shards, and the size of the embedding, must hold each id."""
    settings = json.loads(tokenizer.to_bytes())
    settings["added_tokens"][1]["id"] = settings["model"]["vocab"][EOS_TOKEN] = 70_000
    assert Tokenizer.from_bytes(json.dumps(settings).encode()).vocab_size == 70_001


def test_a_word_of_half_a_million_letters_is_learned_from_in_pieces() -> None:
    """Whole, it would take the trainer time that grows with its square; no token is longer than a piece."""
    text = "a" * 500_000
    tokenizer = Tokenizer.train([text], 280)
    assert max(map(len, json.loads(tokenizer.to_bytes())["model"]["vocab"])) == 256
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_long_word_is_encoded_whole(tokenizer: Tokenizer) -> None:
    """Only the trainer sees pieces: a merge across their border is found in the text."""
    trained = Tokenizer.train(["ab " * 100], 300)
    assert trained.encode("x" * 255 + "ab")[-1] == trained.encode("ab")[0]
    assert json.loads(trained.to_bytes())["pre_tokenizer"]["type"] == "ByteLevel"


@pytest.mark.parametrize("letters", ["a", "7", "!", "日"])
def test_a_word_of_a_million_letters_is_encoded(letters: str) -> None:
    trained, text = Tokenizer.train(CORPUS, 300), letters * 1_000_000
    encode = encoder(trained, "tiktoken")
    assert trained.decode(encode(text).tolist()) == text
