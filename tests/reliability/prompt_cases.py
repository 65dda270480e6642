"""The campaign `prompts`: odd prompts, settings and tokenizers for text generation."""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from calm_core.config import CalmModelConfig, EnergyHeadConfig, MlpAutoencoderConfig, TransformerModelConfig
from calm_core.data.tokenizers import trial
from calm_core.data.tokenizers.encoder import choose_engine, encoder
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.generation.temperature import TextSoFar
from calm_core.generation.text import CalmChunks, NextChunk, Sampling, TextGenerator, TransformerTokens
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer
from calm_core.shown import visible
from tests.reliability.campaign import Case, Lie

SHAPE = {"hidden_size": 16, "intermediate_size": 16}
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL = [PAD, EOS, UNKNOWN]
_ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

PIECES = [
    *("the river", "flows past", " ", "  ", "\t", "\n", "\r\n", "\r", "'s", "1234", "¾", "!!", "a.b,c"),
    *(
        PAD,
        EOS,
        UNKNOWN,
        "<|pad|>",
        "<|endoftext|>",
        "[PAD]",
        "</S>",
        "\uff1c/s\uff1e",
        "<s>",
        "▁",
        "##",
        "<0x41>",
        "</",
        "s>",
    ),
    *("\x00", "\x07", "\x1b[2J", "\x1b]0;title\x07", "\x7f", "\x85", "\x9b1m", "\u2028", "\ufeff", "\u200b"),
    *("שלום עולם", "مرحبا", "\u202eabc\u202c", "\u2066x\u2069"),
    *("e\u0301\u0327\u0323", "Å", "ﬁ", "İ", "ß", "日本語", "中文没有空格", "ภาษาไทย", "한국어"),
    *("👩\u200d👩\u200d👧", "🏳️\u200d🌈", "\U0010fffd", "\U0001f600", "\ufffd", "\ufffd\ufffd"),
    *("A" * 300, "=" * 200, " " * 150, "x y " * 100, "9" * 100),
]
NO_TEXTS: list[Any] = ["the", b"the", None, 5, {"prompt": "the"}, [None], [5], [True], [float("nan")], [b"x"], [["x"]]]
NO_STOPS: list[Any] = [None, 1, [1], ["x" * 1001], ["x"] * 65]
HALVES = ["\ud800", "\udfff", "\udce9", "\ud83d"]


def cases(folder: Path, numbers: random.Random) -> Iterator[Case]:
    """Texts through tiny random models and several tokenizers; what must be refused; and damaged tokenizers."""
    files = {name: make() for name, make in TOKENIZERS.items()}
    generators = [make(Tokenizer.from_bytes(*files[name])) for name in files for make in (_calm, _transformer)]
    kinds: list[Callable[[], Case]] = [
        *[lambda: _text_case(numbers.choice(generators), numbers)] * 6,
        *[lambda: _refused_case(numbers.choice(generators), numbers)] * 3,
        *[lambda: _tokenizer_case(folder, files[numbers.choice([*files])][0], numbers)] * 3,
    ]
    for number in count():
        if number % 200 == 199:
            yield Case("a prompt of a million letters", partial(_long, generators[0], numbers.random()), True)
        yield numbers.choice(kinds)()


# Tokenizers and models.


def _corpus() -> list[str]:
    words = random.Random(0)
    names = ["river", "port", "town", "boat", "old", "small", "near", "the", "a", "flows", "past", "trades", "with"]
    return [" ".join(words.choices(names, k=12)) + ". (12, x/y) <b>" for _ in range(60)]


def _own() -> tuple[bytes, int, int]:
    tokenizer = Tokenizer.train(_corpus(), 300)
    return tokenizer.to_bytes(), tokenizer.pad_id, tokenizer.eos_id


def _saved(backend: tokenizers.Tokenizer) -> tuple[bytes, int, int]:
    return backend.to_str().encode(), backend.token_to_id(PAD), backend.token_to_id(EOS)


def _unigram() -> tuple[bytes, int, int]:
    """Like T5's: a space before the text, and special tokens that are pieces with the best score."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=SPECIAL,
        unk_token=UNKNOWN,
        initial_alphabet=list("</s>pad"),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    return _saved(backend)


def _word_piece() -> tuple[bytes, int, int]:
    """Like BERT's: lower case, no accents, no spaces kept."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(_corpus(), trainer)
    return _saved(backend)


def _word_level() -> tuple[bytes, int, int]:
    """Whole words; its special tokens are marked as such, but no characters spell them."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(_corpus(), trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return _saved(backend)


def _byte_fallback() -> tuple[bytes, int, int]:
    """Like Llama 2's: a space before the text, and bytes for what is in no merge."""
    corpus = [text.replace(" ", "▁") for text in _corpus()]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.BPE())
    trained.train_from_iterator(corpus, trainer)
    settings = json.loads(trained.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] in SPECIAL]
    settings["model"] |= {"byte_fallback": True, "unk_token": UNKNOWN, "fuse_unk": True}
    backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return _saved(backend)


TOKENIZERS = {
    "own": _own,
    "unigram": _unigram,
    "word piece": _word_piece,
    "word level": _word_level,
    "byte fallback": _byte_fallback,
}


class Recorded(NextChunk):
    """A model that keeps what it has chosen, for one prompt at a time."""

    def __init__(self, model: NextChunk) -> None:
        self.model, self.backbone, self.chunk_size = model, model.backbone, model.chunk_size
        self.chosen: list[int] = []

    def embed(self, chunks: Tensor) -> Tensor:
        return self.model.embed(chunks)

    def choose(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        chunk_BK = self.model.choose(hidden_BD, text, noise, sampling)
        begun = int((text.begun_BK[0] >= 0).sum()) if not self.chosen else 0
        self.chosen += chunk_BK[0, begun:].tolist()
        return chunk_BK


def _calm(tokenizer: Tokenizer) -> TextGenerator:
    torch.manual_seed(0)
    autoencoder = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=3, latent_size=6, **SHAPE), tokenizer.vocab_size)
    head = EnergyHeadConfig(num_layers=1, model_samples=2)
    calm = Calm(
        CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, head=head, **SHAPE), tokenizer.vocab_size, 3, 6
    )
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight, std=1.0)
    freeze(autoencoder)
    freeze(calm)
    return TextGenerator(CalmChunks(calm, autoencoder), tokenizer)


def _transformer(tokenizer: Tokenizer) -> TextGenerator:
    torch.manual_seed(0)
    config = TransformerModelConfig(num_hidden_layers=1, num_attention_heads=2, **SHAPE)
    model = Transformer(config, tokenizer.vocab_size)
    freeze(model)
    return TextGenerator(TransformerTokens(model), tokenizer)


# Texts that must be continued.


def _text(numbers: random.Random) -> str:
    return "".join(numbers.choices(PIECES, k=numbers.choice([0, 1, 1, 2, 3, 5, 8, 20])))


def _text_case(generator: TextGenerator, numbers: random.Random) -> Case:
    prompts = [_text(numbers) for _ in range(numbers.choice([1, 1, 2, 3]))]
    seeds = [numbers.choice([0, 1, 2**63 - 1, numbers.randrange(100)]) for _ in prompts]
    temperature = numbers.choice([1.0, 1.0, 0.7, 0.5, 0.001])
    stop = [numbers.choice(["e", "the", " ", "\n", "\ufffd", "zzz", "</s>"])] if numbers.random() < 0.3 else []
    length = numbers.choice([1, 2, 7, 24])
    sampling = Sampling(temperature, samples=numbers.choice([1, 8]))
    return Case(f"{prompts!r}"[:200], partial(_continue, generator, prompts, seeds, length, sampling, stop))


def _continue(
    generator: TextGenerator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    length: int,
    sampling: Sampling,
    stop: Sequence[str],
) -> None:
    options: dict[str, Any] = {"max_new_tokens": length, "sampling": sampling, "stop": stop}
    texts = generator.generate(prompts, seed=seeds, **options)
    tokenizer = generator.tokenizer
    for prompt, seed, text in zip(prompts, seeds, texts, strict=True):
        recorded = Recorded(generator.model)
        pieces = [piece for _, piece in TextGenerator(recorded, tokenizer).stream([prompt], seed=seed, **options)]
        if "".join(pieces) != text:
            raise Lie(f"alone and streamed {pieces!r}, in a batch {text!r}")
        ids, new = tokenizer.encode(prompt), recorded.chosen
        if {tokenizer.pad_id, tokenizer.eos_id} & {*ids}:
            raise Lie("the prompt holds a special token")
        if not stop and tokenizer.eos_id not in new[:length] and len(new) < length:
            raise Lie(f"{len(new)} tokens instead of {length}")
        new = new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new
        _same(text, _truth(tokenizer, ids, new[:length], stop))
        if _ACTS.search(visible(prompt + text, keep="\n\t")):
            raise Lie("a control character reaches the terminal")


def _truth(tokenizer: Tokenizer, ids: list[int], new: list[int], stop: Sequence[str]) -> str:
    """What the tokens mean after the prompt; None where bytes of both make an unreadable run."""
    before, whole = tokenizer.decode(ids), tokenizer.decode(ids + new)
    text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
    return text[: min((text.find(string) for string in stop if string in text), default=len(text))]


def _same(text: str, truth: str) -> None:
    if text != truth:
        raise Lie(f"wrote {text!r} for {truth!r}")


# What must be refused.


def _refused_case(generator: TextGenerator, numbers: random.Random) -> Case:
    prompts = [_text(numbers) for _ in range(numbers.choice([1, 2]))]
    half, place = numbers.choice(HALVES), numbers.randrange(len(prompts))
    broken = [prompt + half * (i == place) + prompt for i, prompt in enumerate(prompts)]
    big = 10 ** numbers.randrange(7, 30)
    bad: dict[str, Callable[[], object]] = {
        "half a character": lambda: generator.generate(broken),
        "half a character to stop at": lambda: generator.generate(prompts, stop=["a", half]),
        "an empty stop string": lambda: generator.generate(prompts, stop=["x"] * numbers.randrange(3) + [""]),
        "seeds": lambda: generator.generate(prompts, seed=list(range(len(prompts) + numbers.choice([-1, 1, 5])))),
        "tokens": lambda: generator.generate(prompts, max_new_tokens=numbers.choice([0, -1, -big, big])),
        "temperature": lambda: Sampling(
            numbers.choice([0.0, -0.0, -1.0, 1.0001, float("nan"), float("inf"), -float("inf"), 1e-4, 1e-300, 5e-324])
        ),
        "samples": lambda: Sampling(0.5, samples=numbers.choice([0, -1, -big, big])),
        "a seed": lambda: generator.generate(prompts, seed=numbers.choice([-1, -big, 2**63, 2**63 + big])),
        "prompts": lambda: generator.generate(numbers.choice(NO_TEXTS)),
        "something to stop at": lambda: generator.generate(
            prompts, stop=numbers.choice([None, 1, [1], ["x" * 1001], ["x"] * 65])
        ),
        "budget": lambda: Sampling(0.5, budget=-numbers.choice([1, big])),
    }
    name = numbers.choice([*bad])
    return Case(f"{name}: {prompts!r}"[:200], bad[name], must_refuse=True)


def _long(generator: TextGenerator, seed: float) -> None:
    letters = random.Random(seed).choices("abcdefghij", k=1_000_000)
    generator.generate(["".join(letters)], max_new_tokens=1)


# Tokenizers that were changed.

JUNK = [
    *(None, True, False, 0, -1, 1, 2**31, 2**32 - 1, 2**32, 10**12, 1.5, "", " ", ".", "a", "the", EOS, PAD, UNKNOWN),
    *([], {}, [[]], {"type": "Nonsense"}, {"type": "Lowercase"}, {"type": "ByteLevel"}, "\x00", "日本"),
]
BOMBS = ["(a+)+$", "(a|aa)+$", "(.*)*x", "(x+x+)+y", "((a{1,1000}){1,1000}){1,1000}", "(?=(a+))a*b\\1", "(", "[", ""]
TRIED = [*PIECES, f"a{EOS}b {PAD} {EOS}", f"{EOS}{EOS}", ". the . a", "the old port. "]


def _tokenizer_case(folder: Path, content: bytes, numbers: random.Random) -> Case:
    settings = json.loads(content)
    names = [numbers.choice(_change(settings, numbers)) for _ in range(numbers.choice([1, 1, 1, 2, 3]))]
    data = json.dumps(settings).encode()
    if numbers.random() < 0.1:
        place = numbers.randrange(len(data))
        data = data[:place] + bytes([numbers.randrange(256)]) + data[place + numbers.choice([0, 1, 100, len(data)]) :]
        names.append("bytes")
    words = [PAD, EOS, UNKNOWN, ".", "the", "a", "▁the", "##s", None, "\ud800", "\x1b[2J", "", *SPECIAL]
    pad, eos = (numbers.choice([default] * 6 + words) for default in (PAD, EOS))
    return Case(f"tokenizer: {names} pad {pad!r} eos {eos!r}"[:200], partial(_use, folder, data, pad, eos))


def _change(settings: dict[str, Any], numbers: random.Random) -> list[str]:
    """Change something; returns its name."""
    tokens = settings["added_tokens"] if isinstance(settings.get("added_tokens"), list) else []
    token = numbers.choice([one for one in tokens if isinstance(one, dict)] or [{}])
    kind = numbers.randrange(7)
    if kind == 0:
        regex = {"Regex": numbers.choice(BOMBS)}
        where, step = numbers.choice(
            [
                ("pre_tokenizer", {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}),
                ("normalizer", {"type": "Replace", "pattern": regex, "content": numbers.choice(["", "aa", EOS])}),
                ("decoder", {"type": "Replace", "pattern": regex, "content": numbers.choice(["", "aa", EOS])}),
            ]
        )
        settings[where] = step
        return [f"{where} {regex['Regex']}"]
    if kind == 1:
        token["special"] = not token.get("special")
        return [f"special of {token.get('content')}"]
    if kind == 2:
        field = numbers.choice(["id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"])
        token[field] = numbers.choice(JUNK)
        return [f"{field} of an added token"]
    if kind == 3:
        settings["added_tokens"] = [one for one in tokens if one is not token]
        return [f"without {token.get('content')}"]
    if kind == 4:
        replace = {"type": "Replace", "pattern": {"String": numbers.choice(["e", "the", ".", "<", "s"])}}
        settings["normalizer"] = replace | {"content": numbers.choice([EOS, PAD, UNKNOWN, "", "e" * 1000])}
        return [f"normalizer to {settings['normalizer']['content'][:9]}"]
    place: Any = settings
    path: list[Any] = []
    while isinstance(place, dict | list) and place and (not path or numbers.random() < 0.7):
        parent, key = place, numbers.choice([*(place if isinstance(place, dict) else range(len(place)))])
        path, place = [*path, key], parent[key]
    if kind == 5:
        del parent[key]
        return [f"without {path}"]
    parent[key] = numbers.choice(JUNK)
    return [f"{path} = {parent[key]!r}"]


def _use(folder: Path, data: bytes, pad: str | None, eos: str | None) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    trial.CPU_SECONDS = 5
    tokenizer = Tokenizer.load(str(folder / "tokenizer.json"), pad, eos)
    if tokenizer.pad_id == tokenizer.eos_id:
        raise Lie("padding is the end of a document")
    if not 0 <= max(tokenizer.pad_id, tokenizer.eos_id) < tokenizer.vocab_size <= 2**24:
        raise Lie(f"ids {tokenizer.pad_id} and {tokenizer.eos_id} in a vocabulary of {tokenizer.vocab_size}")
    refused = None
    engine, _ = choose_engine(tokenizer, [])
    encode = encoder(tokenizer, engine)
    for text in TRIED:
        try:
            ids = encode(text).tolist()
            tokenizer.decode(ids)
        except CalmError as error:
            refused = error
            continue
        if {tokenizer.pad_id, tokenizer.eos_id} & {*ids}:
            raise Lie(f"{text!r} gives padding or the end of a document")
        if ids != tokenizer.encode(text):
            raise Lie(f"{text!r}: the engines differ")
        if engine == "tiktoken" and tokenizer.decode(ids) != text:
            raise Lie(f"{text!r} does not come back, and is not counted")
    if refused:
        raise refused
