"""Both engines give the same ids, or the slower one is taken; tokenizers from elsewhere mean what they mean there."""

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiktoken
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from calm_cli.summary import data_lines
from calm_core.config import TokenizerConfig
from calm_core.data.stage import prepare_data
from calm_core.data.tokenizers import encoder as encoder_module
from calm_core.data.tokenizers import tokenizer as tokenizer_module
from calm_core.data.tokenizers import trial
from calm_core.data.tokenizers.encoder import choose_engine, encoder
from calm_core.data.tokenizers.tokenizer import EOS_TOKEN, PAD_TOKEN, Tokenizer
from calm_core.errors import CalmError
from tests.data.test_prepare import data_of, documents_of, split_of, texts, write_lines

CORPUS = [
    "the river flows past the old port, 1234 boats",
    "it's I'd don't we'll we've we're I'm IT'S",
    "a café in 日本",
    "if x:\n\t\t  y !!",
] * 4
# As published with Llama 3 (llama_models/llama3/api/tokenizer.py).
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA_MERGES = [
    *("da", "th", "the", " the", "er", "ver", "iver", "river", " t", "12", "123", "\n\n", "  ", "    "),
    *("'s", "'S", "'t", "'d", "'m", "re", "'re", "ve", "'ve", "ll", "'ll", "x'"),
]
LLAMA_RANKS = {bytes([byte]): byte for byte in range(256)} | {m.encode(): 256 + i for i, m in enumerate(LLAMA_MERGES)}
NAMES = {"pad_token": "[PAD]", "eos_token": {"content": "</s>", "lstrip": False}}


def write_ranks(path: Path, ranks: dict[bytes, int] = LLAMA_RANKS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


def write_folder(folder: Path, backend: tokenizers.Tokenizer) -> Path:
    """A folder as transformers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8, **NAMES}))
    return folder


def byte_level(**parts: Any) -> tokenizers.Tokenizer:
    """A byte-level BPE with special tokens of other names; `parts` are set on it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["[PAD]", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def of_other_kind(model: Any, trainer: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(CORPUS, trainer(special_tokens=["[PAD]", "</s>", "[UNK]"], show_progress=False))
    return backend


@pytest.fixture(scope="module", params=["trained", "ranks", "folder"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    match request.param:
        case "ranks":
            return Tokenizer.load(str(write_ranks(folder / "tokenizer.model")))
        case "folder":
            return Tokenizer.load(str(write_folder(folder, byte_level())))
    return Tokenizer.train(CORPUS, 400)


# Words and signs about which patterns differ: apostrophes, a long s that folds to s, marks, digits, kinds of space.
PIECES = [
    *("the river", "they'll", "IT'S", "I'd've", "don't", "we're", "I'm", "x'", "'dad", "'\u017f", "''"),
    *("e\u0301", "naïve", "ß", "İ", "日本", "ภาษา", "🙂", "👩\u200d👧"),
    *("1", "2345", "٣", "½", "Ⅷ", "_", "--", "!!\n", "</s>", PAD_TOKEN, "<|end_of_text|>"),
    *("\x00", "\u200b", "\ufeff", "\U0010ffff"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c"),
]


def test_both_engines_give_the_same_ids_for_any_text(tokenizer: Tokenizer) -> None:
    assert choose_engine(tokenizer, CORPUS) == ("tiktoken", "")
    encode, numbers = encoder(tokenizer, "tiktoken"), random.Random(0)
    for _ in range(500):
        text = "".join(numbers.choices(PIECES, k=numbers.randrange(30)))
        ids = encode(text)
        assert ids.dtype == "uint32"
        assert ids.tolist() == tokenizer.encode(text), text
        assert tokenizer.decode(ids.tolist()) == text


def test_special_tokens_spelled_out_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    spelled = "</s>[PAD] " + PAD_TOKEN + EOS_TOKEN + "<|end_of_text|><|finetune_right_pad_id|>"
    ids = encoder(tokenizer, "tiktoken")(spelled).tolist()
    assert not {tokenizer.pad_id, tokenizer.eos_id} & {*ids}
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == spelled


@pytest.mark.parametrize("length", [9_999, 10_000, 20_000])
@pytest.mark.parametrize("space", [" ", "\n", " \n", "\u3000"])
def test_long_runs_of_space_are_encoded_like_short_ones(space: str, length: int, tokenizer: Tokenizer) -> None:
    """From 10,000 on the other engine steps in."""
    text = "a" + (space * length)[:length] + "b"
    assert encoder(tokenizer, "tiktoken")(text).tolist() == tokenizer.encode(text)


def test_a_run_of_space_that_is_too_much_for_tiktoken_is_encoded() -> None:
    """At a million its pattern engine runs out of stack."""
    tokenizer, text = Tokenizer.train(CORPUS, 300), "a" + " " * 1_000_000 + "b"
    assert tokenizer.decode(encoder(tokenizer, "tiktoken")(text).tolist()) == text


def test_ranks_mean_what_they_mean_to_llama(tmp_path: Path) -> None:
    """Against tiktoken as Llama 3 sets it up; a word of its own is found although no two tokens make it."""
    ranks = LLAMA_RANKS | {b"zyzzyva": len(LLAMA_RANKS)}
    tokenizer = Tokenizer.load(str(write_ranks(tmp_path / "tokenizer.model", ranks)))
    llama = tiktoken.Encoding("llama", pat_str=LLAMA_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in (*CORPUS, "".join(PIECES), *PIECES, "1zyzzyva zyzzyvas"):
        assert tokenizer.encode(text) == llama.encode(text, disallowed_special=())
    assert choose_engine(tokenizer, CORPUS) == ("tiktoken", "")


def test_the_special_tokens_of_llama_follow_the_ranks_in_a_fixed_order(tmp_path: Path) -> None:
    source = str(write_ranks(tmp_path / "tokenizer.model"))
    tokenizer, ranks = Tokenizer.load(source), len(LLAMA_RANKS)
    assert tokenizer.vocab_size == ranks + 256
    assert (tokenizer.eos_id, tokenizer.pad_id) == (ranks + 1, ranks + 4)
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"]
    names += ["finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    names += ["image", "reserved_special_token_2"]
    other = "<|reserved_special_token_3|>"
    found = [Tokenizer.load(source, other, f"<|{name}|>").eos_id - ranks for name in names]
    assert found == list(range(len(names)))


NO_BYTE_LEVEL = "the tokenizer is no plain byte-level BPE"
SLOW: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "a normalizer": lambda: byte_level(normalizer=normalizers.NFC()),
    "a space before the text": lambda: byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "other splits": lambda: byte_level(pre_tokenizer=pre_tokenizers.Whitespace()),
    "WordPiece": lambda: of_other_kind(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
    "Unigram": lambda: of_other_kind(models.Unigram(), trainers.UnigramTrainer),
    "BPE of characters": lambda: of_other_kind(models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
}


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW.keys())
def test_what_tiktoken_cannot_express_is_encoded_by_tokenizers(
    make: Callable[[], tokenizers.Tokenizer], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, make())))
    assert choose_engine(tokenizer, CORPUS) == ("tokenizers", NO_BYTE_LEVEL)
    assert encoder(tokenizer, "tokenizers")(CORPUS[0]).tolist() == tokenizer.encode(CORPUS[0])


def test_an_added_token_that_is_found_in_text_needs_the_slower_engine(tmp_path: Path) -> None:
    backend = byte_level()
    backend.add_tokens(["river"])
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, backend)))
    assert choose_engine(tokenizer, []) == ("tokenizers", NO_BYTE_LEVEL)
    assert backend.token_to_id("river") in encoder(tokenizer, "tokenizers")("the river")


def test_merges_that_tiktoken_would_read_otherwise_are_noticed(tmp_path: Path) -> None:
    """ "abc" is reached from "ab" alone, but "bc" is merged first: tokenizers gives a + bc, tiktoken the whole word."""
    settings = json.loads(byte_level().to_str())
    settings["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    alphabet = [token for token in settings["model"]["vocab"] if len(token) == 1 or token in ("[PAD]", "</s>")]
    settings["model"]["vocab"] = {token: i for i, token in enumerate([*alphabet, "bc", "ab", "abc"])}
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, tokenizers.Tokenizer.from_str(json.dumps(settings)))))
    assert choose_engine(tokenizer, []) == ("tokenizers", "tiktoken gives other ids for 'abc'")


def test_engines_that_differ_in_the_sample_alone_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that goes wrong at a single word, which no token holds."""
    wrong = rf"a(?=bq)|{encoder_module._BYTE_LEVEL_PATTERN}"
    monkeypatch.setattr(encoder_module, "_BYTE_LEVEL_PATTERN", wrong)
    tokenizer = Tokenizer.train(["ab ab ab"], 260)
    assert choose_engine(tokenizer, ["ab", "q"]) == ("tiktoken", "")
    assert choose_engine(tokenizer, ["ab", "x\nabq"]) == ("tokenizers", "tiktoken gives other ids for 'x\\nabq'")


@pytest.mark.parametrize(
    ("parts", "engine"), [({}, "tiktoken"), ({"normalizer": normalizers.NFC()}, "tokenizers")], ids=["fast", "slow"]
)
def test_a_dataset_is_made_with_a_tokenizer_from_elsewhere(parts: dict[str, Any], engine: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "tokenizer", byte_level(**parts))
    everything = texts(20)
    config = TokenizerConfig(source=str(source))
    dataset = prepare_data(data_of(write_lines(tmp_path / "a.jsonl", everything)), config, f"{tmp_path}/dataset")
    assert dataset.facts.engine == engine
    assert (dataset.facts.pad_id, dataset.facts.eos_id) == (0, 1)
    assert documents_of(dataset) == {
        split: [text for text in everything if split_of(text, 0.3) == split] for split in ("train", "validation")
    }


def test_a_length_limit_and_padding_of_a_tokenizer_cut_no_document(tmp_path: Path) -> None:
    """They belong to batches of a model, and are saved with the tokenizer all the same."""
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(pad_id=0, pad_token="[PAD]", length=8)
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, backend)))
    for text in ("a", CORPUS[0]):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.pad_id not in tokenizer.encode(text)


@pytest.mark.parametrize("place", ["tokenizer.model", "original/tokenizer.model"])
def test_ranks_are_found_in_a_folder(place: str, tmp_path: Path) -> None:
    write_ranks(tmp_path / place)
    assert Tokenizer.load(str(tmp_path)).vocab_size == len(LLAMA_RANKS) + 256


def test_a_tokenizer_is_read_by_any_name_from_any_file_system() -> None:
    with fsspec.open("memory://calm-tokenizer/deep/other-name.json", "wb") as file:
        file.write(byte_level().to_str().encode())
    with fsspec.open("memory://calm-tokenizer/deep/tokenizer_config.json", "wb") as file:
        file.write(json.dumps(NAMES).encode())
    tokenizer = Tokenizer.load("memory://calm-tokenizer/deep/other-name.json")
    fsspec.filesystem("memory").rm("/calm-tokenizer", recursive=True)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)


def test_special_tokens_of_the_settings_go_before_those_of_the_files(tmp_path: Path) -> None:
    source = str(write_folder(tmp_path, byte_level()))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!", "eos_token": "</s>"}))
    assert Tokenizer.load(source).pad_id == 0  # tokenizer_config.json goes before the older file
    tokenizer = Tokenizer.load(source, pad_token="</s>", eos_token="[PAD]")
    assert (tokenizer.pad_id, tokenizer.eos_id) == (1, 0)


BAD_FILES: dict[str, tuple[dict[str, bytes], str]] = {
    "no file": ({}, r"none\.json"),
    "no folder": ({}, r"none: holds no tokenizer\.json"),
    "no ranks": ({}, r"none\.model: no such file; check tokenizer\.source"),
    "garbage": ({"a.json": b"garbage"}, r"a\.json: is no tokenizer\.json"),
    "binary": ({"a.json": b"\xff\xfe\x00"}, r"a\.json: is no tokenizer\.json"),
    "empty": ({"a.json": b""}, r"a\.json: is no tokenizer\.json"),
    "other JSON": ({"a.json": b'{"a": 1}'}, r"a\.json: is no tokenizer\.json"),
    "SentencePiece": ({"a.model": b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00"}, r"a\.model: is no Llama-3 tokenizer\.model"),
    "no base64": ({"a.model": b"caf\xc3\xa9 0\n"}, r"a\.model: is no Llama-3 tokenizer\.model"),
    "no number": ({"a.model": b"YQ== x\n"}, r"a\.model: is no Llama-3 tokenizer\.model"),
    "no line": ({"a.model": b""}, r"a\.model: is no Llama-3 tokenizer\.model"),
    "a token without end": (
        {
            "a.model": b"".join(
                base64.b64encode(bytes([i % 256]) * (1 + 999 * (i // 256))) + b" %d\n" % i for i in range(257)
            )
        },
        r"a\.model: is no Llama-3 tokenizer\.model",
    ),
    "missing bytes": ({"a.model": b"YQ== 0\nYg== 1\n"}, r"a\.model: is no Llama-3 tokenizer\.model"),
}


@pytest.mark.parametrize(("files", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_tokenizer_is_named_on_one_line(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    [source] = files or [message.partition(":")[0].replace("\\", "")]
    with pytest.raises(CalmError, match=message) as caught:
        Tokenizer.load(f"{tmp_path}/{source}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"gap": 270}, {"twice": 5}], ids=["a gap in the ranks", "a rank twice"])
def test_ranks_that_collide_with_the_special_tokens_are_refused(change: dict[str, int], tmp_path: Path) -> None:
    """The special tokens' ids follow the last rank; with a gap they would lie among the text's."""
    ranks = LLAMA_RANKS | {word.encode(): rank for word, rank in change.items()}
    if "gap" in change:
        ranks[b"gap"] += len(LLAMA_RANKS)
    with pytest.raises(CalmError, match=r"is no Llama-3 tokenizer\.model"):
        Tokenizer.load(str(write_ranks(tmp_path / "tokenizer.model", ranks)))


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
@pytest.mark.parametrize("form", ["ranks", "folder"])
def test_a_special_token_that_is_not_there_is_asked_for(form: str, role: str, tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "a.model") if form == "ranks" else write_folder(tmp_path, byte_level())
    with pytest.raises(CalmError, match=rf"{source}: .* no token <none>; .*tokenizer\.{role}") as caught:
        Tokenizer.load(str(source), **{role: "<none>"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"garbage", b"3"], ids=["no JSON", "no object"])
def test_a_damaged_file_beside_the_tokenizer_is_named(content: bytes, name: str, tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalmError, match=name.replace(".", r"\.")) as caught:
        Tokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)


# What a text says stays text.

SPELLED = ["</s>", "a</s>b", "x </s> y [PAD]", "[PAD][PAD]"]


def marked(backend: tokenizers.Tokenizer, special: bool) -> tokenizers.Tokenizer:
    """The same tokenizer with its added tokens marked, or not marked, as special."""
    settings = json.loads(backend.to_str())
    for token in settings["added_tokens"]:
        token["special"] = special
    return tokenizers.Tokenizer.from_str(json.dumps(settings))


def unigram(*others: str) -> tokenizers.Tokenizer:
    """As T5 has it: special tokens are pieces with the best score of all, and each word begins with its space."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["[PAD]", "</s>", "[UNK]"],
        unk_token="[UNK]",
        initial_alphabet=[*"</s>[PAD]xy", *others],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def words() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["[PAD]", "</s>", "[UNK]"]
    backend.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return backend


def test_special_tokens_that_are_pieces_of_the_vocabulary_are_spelled_out(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, unigram())))
    for text in SPELLED:
        ids = tokenizer.encode(text)
        assert not {tokenizer.pad_id, tokenizer.eos_id} & {*ids}
        assert tokenizer.decode(ids) == text


def test_byte_pieces_spell_a_special_token_too(tmp_path: Path) -> None:
    """Where a character of its name is no token itself: SentencePiece's byte fallback."""
    settings = json.loads(unigram().to_str())
    settings["model"]["vocab"] = [piece for piece in settings["model"]["vocab"] if piece[0] != "<"]
    settings["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    settings["model"]["byte_fallback"] = True
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    settings["decoder"] = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, tokenizers.Tokenizer.from_str(json.dumps(settings)))))
    ids = tokenizer.encode("a</s>b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a</s>b"


UNSAFE: dict[str, tuple[Callable[[], tokenizers.Tokenizer], dict[str, str], str]] = {
    "one token for both": (byte_level, {"pad_token": "</s>"}, "is both padding and the end of a document"),
    "a full stop": (byte_level, {"eos_token": "."}, r"the eos_token \. is an ordinary word"),
    "a word with its space": (byte_level, {"pad_token": "Ġthe"}, "the pad_token Ġthe is an ordinary word"),
    "a piece of a word": (unigram, {"pad_token": "▁"}, "the pad_token ▁ is an ordinary word"),
    "the unknown word": (words, {"pad_token": "[UNK]"}, r"the pad_token \[UNK\] is an ordinary word"),
    "not marked as special": (lambda: marked(byte_level(), False), {}, r"the pad_token \[PAD\] is an ordinary word"),
    "a word that nothing spells": (
        words,
        {},
        r"finds the pad_token \[PAD\] in a text.* no tokens to spell it",
    ),
    "a control character": (lambda: unigram("\x1b"), {"eos_token": "\x1b"}, r"the eos_token \\x1b is an ordinary word"),
}


@pytest.mark.parametrize(("make", "names", "message"), UNSAFE.values(), ids=UNSAFE.keys())
def test_special_tokens_that_a_text_may_hold_are_refused(
    make: Callable[[], tokenizers.Tokenizer], names: dict[str, str], message: str, tmp_path: Path
) -> None:
    source = str(write_folder(tmp_path, make()))
    with pytest.raises(CalmError, match=message) as caught:
        Tokenizer.load(source, **names)
    assert str(caught.value).startswith(source)
    assert str(caught.value).isprintable()


def test_a_text_that_becomes_a_special_token_all_the_same_is_refused() -> None:
    """Where loading could not foresee it: no text that was tried is the word that a rule of this tokenizer makes."""
    backend = words()
    backend.normalizer = normalizers.Replace("river", "</s>")
    tokenizer = Tokenizer.from_bytes(backend.to_str().encode(), 0, 1)
    assert tokenizer.encode("the old port")
    with pytest.raises(CalmError, match="the text holds </s>, which this tokenizer cannot tell from the end of a doc"):
        tokenizer.encode("the river")


def test_a_trained_model_may_pad_with_its_end(tmp_path: Path) -> None:
    backend = byte_level()
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    tokenizer = Tokenizer.from_folder(str(tmp_path), eos_token="</s>", end_fills_up=True)
    assert tokenizer.pad_id == tokenizer.eos_id == 1
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"


def test_a_tokenizer_that_encodes_at_random_does_so_no_more(tmp_path: Path) -> None:
    """BPE's dropout, meant for training translators, would make the same documents other tokens each time."""
    settings = json.loads(byte_level().to_str())
    settings["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(str(tmp_path), "[PAD]", "</s>")
    assert len({tuple(tokenizer.encode(CORPUS[0])) for _ in range(20)}) == 1


# Files that are made to do harm.


def changed(**parts: Any) -> bytes:
    return json.dumps(json.loads(byte_level().to_str()) | parts).encode()


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def added(number: int) -> list[dict[str, Any]]:
    places = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": number, "content": "</s>", "special": True, **places}]


def nested(depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


HUNDREDFOLD = {"type": "Replace", "pattern": {"Regex": "."}, "content": "." * 100}
HARMFUL: dict[str, Callable[[], bytes]] = {
    "a pattern without end": lambda: changed(pre_tokenizer=split_by("(a+)+$")),
    "a pattern in a normalizer": lambda: changed(normalizer=HUNDREDFOLD | {"pattern": {"Regex": "(a|aa)+$"}}),
    "a pattern in a decoder": lambda: changed(
        decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, HUNDREDFOLD | {"pattern": {"Regex": "(a+)+$"}}]}
    ),
    "a hundredfold text": lambda: changed(normalizer={"type": "Sequence", "normalizers": [HUNDREDFOLD] * 5}),
    "steps in steps": lambda: changed(normalizer=nested(200)),
    "an id of four thousand million": lambda: changed(
        model={"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}, added_tokens=[]
    ),
    "an id beyond all types": lambda: changed(added_tokens=added(10**12)),
    "a negative id": lambda: changed(added_tokens=added(-1)),
    "no tokens": lambda: changed(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]),
    "a list for a model": lambda: changed(model=[]),
    "no characters": lambda: b'{"model": "\xff\xfe"}',
    "nothing but brackets": lambda: b"[" * 1_000_000,
}


@pytest.mark.parametrize("make", HARMFUL.values(), ids=HARMFUL.keys())
def test_a_harmful_tokenizer_is_refused_within_limits(
    make: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "CPU_SECONDS", 10)
    monkeypatch.setattr(trial, "MEMORY_BYTES", 2**30)
    (tmp_path / "tokenizer.json").write_bytes(make())
    with pytest.raises(CalmError, match=rf"{tmp_path}/tokenizer\.json: ") as caught:
        Tokenizer.load(str(tmp_path), "[PAD]", "</s>")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_file_that_is_too_large_for_a_tokenizer_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CalmError, match="has more than 1,000 bytes"):
        Tokenizer.load(str(write_folder(tmp_path, byte_level())))


def test_names_of_special_tokens_that_are_nested_too_deep_are_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CalmError, match="tokenizer_config"):
        Tokenizer.load(str(tmp_path))


def test_a_panic_while_encoding_is_one_line() -> None:
    """Of a tokenizer inside an artifact, which is not tried out again."""
    tokenizer = Tokenizer.from_bytes(changed(pre_tokenizer=split_by("(a+)+$")), 0, 1)
    with pytest.raises(CalmError, match="the tokenizer cannot encode this text") as caught:
        tokenizer.encode("a" * 40 + "!")
    assert "\n" not in str(caught.value)


def test_half_a_character_is_one_line() -> None:
    tokenizer = Tokenizer.train(CORPUS, 300)
    with pytest.raises(CalmError, match="the tokenizer cannot encode this text"):
        tokenizer.encode("a\ud800b")


def test_what_a_pattern_leaves_out_is_not_lost_with_the_fast_engine(tmp_path: Path) -> None:
    """tiktoken drops what its pattern does not match: here private characters, which no text that is tried has."""
    backend = byte_level(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\P{Co}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    tokenizer = Tokenizer.load(str(write_folder(tmp_path, backend)))
    assert choose_engine(tokenizer, []) == ("tiktoken", "")
    text = "a\ue000\ue001b"
    assert tokenizer.decode(encoder(tokenizer, "tiktoken")(text).tolist()) == text


# What a tokenizer cannot keep.


def lower_case() -> tokenizers.Tokenizer:
    return byte_level(normalizer=normalizers.Lowercase())


@pytest.mark.parametrize(
    ("make", "changed_documents", "has_unknown"),
    [(byte_level, 0, False), (lower_case, 2, False), (words, 1, True)],
    ids=["byte-level", "lower case", "words"],
)
def test_documents_that_a_tokenizer_changes_are_counted_and_shown(
    make: Callable[[], tokenizers.Tokenizer], changed_documents: int, has_unknown: bool, tmp_path: Path
) -> None:
    """All documents are made of known words; one has a capital, another one too and an unknown word."""
    backend = make()
    backend.add_special_tokens(["<|pad|>", "<|endoftext|>"])
    source = write_folder(tmp_path / "tokenizer", backend)
    (source / "tokenizer_config.json").unlink()
    documents = [f"{a} {b} {c}" for a in ("the", "river", "old") for b in ("flows", "past") for c in ("in", "past")]
    documents += ["the I'm", "the I'm zyzzyva"] if make is not words else ["the zyzzyva"]
    config = TokenizerConfig(source=str(source))
    dataset = prepare_data(data_of(write_lines(tmp_path / "a.jsonl", documents)), config, f"{tmp_path}/dataset")
    assert dataset.facts.changed_documents == changed_documents
    assert bool(dataset.facts.unknown_tokens) == has_unknown
    for name in ("changed_documents", "unknown_tokens"):
        with pytest.raises(ValueError, match=f"{name} .* are more than"):
            type(dataset.facts).model_validate(dataset.facts.model_dump() | {name: 10**6})
    shown = dict(data_lines(dataset.facts)).get("changed by the tokenizer", "")
    assert shown.startswith(str(changed_documents)) if changed_documents else not shown
