"""Text generation: lengths, batches, seeds, stop strings, streaming, and prompts that end inside a chunk."""

from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_core.config import AUTOENCODERS, CalmModelConfig, EnergyHeadConfig, TransformerModelConfig
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.generation.continuation import Continuation
from calm_core.generation.samplers.base import OneLatent
from calm_core.generation.temperature import TextSoFar
from calm_core.generation.text import CalmChunks, Sampling, TextGenerator, TransformerTokens
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.transformer import Transformer

K = 4
SHAPE = {"hidden_size": 16, "intermediate_size": 16}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the river flows past the old port " * 20], 280)


@pytest.fixture
def kind() -> str:
    """Of the autoencoder."""
    return "mlp"


@pytest.fixture
def generator(tokenizer: Tokenizer, kind: str) -> TextGenerator:
    torch.manual_seed(0)
    shape = {"kind": kind, "chunk_size": K, "latent_size": 6, **SHAPE}
    autoencoder = make_autoencoder(AUTOENCODERS.parse(shape), tokenizer.vocab_size)
    config = CalmModelConfig(
        num_hidden_layers=1, num_attention_heads=2, head=EnergyHeadConfig(num_layers=1, model_samples=2), **SHAPE
    )
    calm = Calm(config, tokenizer.vocab_size, K, 6)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight, std=1.0)
    freeze(autoencoder)
    freeze(calm)
    return TextGenerator(CalmChunks(calm, autoencoder), tokenizer)


@pytest.fixture
def token_generator(tokenizer: Tokenizer) -> TextGenerator:
    torch.manual_seed(0)
    config = TransformerModelConfig(num_hidden_layers=1, num_attention_heads=2, **SHAPE)
    model = Transformer(config, tokenizer.vocab_size)
    freeze(model)
    return TextGenerator(TransformerTokens(model), tokenizer)


PROMPTS = ["the river flows past", "", "the", "the old port the old port the old port"]


def write(generator: TextGenerator, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model write this text, chunk by chunk, whatever the prompt."""
    ids = [*generator.tokenizer.encode(text), generator.tokenizer.eos_id]
    chunks = [ids[i : i + K] for i in range(0, len(ids), K)]
    chunks[-1] += [generator.tokenizer.eos_id] * (K - len(chunks[-1]))
    left = iter(chunks)
    monkeypatch.setattr(generator.model, "choose", lambda hidden, *_: torch.tensor(next(left)).expand(len(hidden), K))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.6, samples=16),
        Sampling(0.9, budget=5000),
        Sampling(0.5, sampler="branch"),
        Sampling(0.5, sampler="densest"),
    ],
    ids=str,
)
def test_a_prompts_text_does_not_depend_on_the_others_of_its_batch(
    generator: TextGenerator, sampling: Sampling
) -> None:
    if sampling.budget:  # less diverse, so that equal samples are drawn at all
        assert isinstance(generator.model, CalmChunks)
        last = generator.model.calm.mlp_generator.final_layer.linears[2]
        last.weight.mul_(0.2)
        last.bias.fill_(1)
    seeds = [5, 6, 7, 5]
    together = generator.generate(PROMPTS, seed=seeds, sampling=sampling, max_new_tokens=11)
    for order in ([0], [3, 1], [2, 0, 3]):
        texts = generator.generate(
            [PROMPTS[i] for i in order], seed=[seeds[i] for i in order], sampling=sampling, max_new_tokens=11
        )
        assert texts == [together[i] for i in order]
    assert generator.generate(PROMPTS, seed=9, sampling=sampling, max_new_tokens=11) != together


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
def test_a_batch_writes_what_reading_everything_anew_would(generator: TextGenerator) -> None:
    """No cache, one prompt at a time: the whole context through the backbone for each chunk, with the same noise."""
    from calm_core.models.noise import SequenceNoise, derive_seed

    texts = generator.write(PROMPTS, seed=3, max_new_tokens=12)
    assert isinstance(generator.model, CalmChunks)
    for prompt, (text, tokens) in zip(PROMPTS, texts, strict=True):
        noise = SequenceNoise([derive_seed(3, "generate")])
        ids = generator.tokenizer.encode(prompt)
        whole, begun = ids[: len(ids) // K * K], ids[len(ids) // K * K :]
        context = [generator.tokenizer.eos_id] + [generator.tokenizer.pad_id] * (K - 1) + whole
        written: list[int] = []
        while len(written) < 12:
            chunks = torch.tensor([context]).unflatten(1, (-1, K))
            hidden, _ = generator.model.backbone(generator.model.embed(chunks))
            reads = generator.model.autoencoder.reads
            before = torch.tensor([[-1] * reads + context])[:, len(context) :]
            row = TextSoFar(before, torch.tensor([begun + [-1] * (K - len(begun))]))
            chunk = generator.model.choose(hidden[:, -1], row, noise, Sampling())[0].tolist()
            context, written, begun = context + chunk, written + chunk[len(begun) :], []
            if generator.tokenizer.eos_id in written:
                written = written[: written.index(generator.tokenizer.eos_id)]
                break
        assert tokens == written[:12]
        assert text == generator.tokenizer.decode(tokens)


def test_more_prompts_than_a_batch_holds_are_written_in_several(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long prompt does not fill up the others to its length."""
    prompts = ["the", "the old port " * 20, "", "the river flows", "the old", "port"]
    together = generator.generate(prompts, max_new_tokens=8, seed=[*range(6)])
    sizes: list[tuple[int, int]] = []
    read = generator._read
    monkeypatch.setattr(
        generator, "_read", lambda prompts: (sizes.append((len(prompts), max(map(len, prompts)))), read(prompts))[1]
    )
    monkeypatch.setattr("calm_core.generation.text._POSITIONS_AT_ONCE", 30)
    assert generator.generate(prompts, max_new_tokens=8, seed=[*range(6)]) == together
    assert sum(rows for rows, _ in sizes) == 6
    assert [rows * (longest + 8) <= 30 for rows, longest in sizes] == [True] * (len(sizes) - 1) + [False]
    assert sizes[-1][0] == 1 < sizes[0][0]


def test_a_begun_chunk_is_the_first_sample_that_fits(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that fit in the first, second and last round, and one that never does; plainly, from all samples."""
    assert isinstance(generator.model, CalmChunks)
    autoencoder = generator.model.autoencoder
    latents = 3 * torch.randn(4, 256, 6, generator=torch.Generator().manual_seed(0))
    chunks = autoencoder.decode(latents)
    begun = torch.full((4, K), -1)
    for row, place in enumerate((5, 40, 200)):
        begun[row, : K - 1] = chunks[row, place, : K - 1]
    missing = [token for token in range(280) if token not in chunks[3, :, 0].tolist()]
    begun[3, 0] = missing[0]
    fits = ((chunks == begun.unsqueeze(1)) | (begun.unsqueeze(1) == -1)).all(-1)
    first = [row.nonzero()[0, 0].item() if row.any() else 0 for row in fits]
    plain = torch.where(begun == -1, chunks[torch.arange(4), torch.tensor(first)], begun)

    used = [0] * 4

    def hand_out(hidden: torch.Tensor, noise: Rows, number: int) -> torch.Tensor:
        starts = [used[row] for row in noise.own]
        for row in noise.own:
            used[row] += number
        return torch.stack([latents[row, start : start + number] for row, start in zip(noise.own, starts, strict=True)])

    monkeypatch.setattr(OneLatent, "plain_latents", lambda _, *asked: hand_out(*asked))
    text = TextSoFar(torch.zeros_like(begun), begun)
    out = generator.model.choose(torch.zeros(4, 16), text, Rows([*range(4)]), Sampling())  # type: ignore[arg-type]
    assert torch.equal(out, plain)
    assert used[0] < used[1] < used[2] == used[3] == 256


class Rows:
    """Stands for the noise of some rows, and tells which they are."""

    def __init__(self, own: list[int]) -> None:
        self.own = own

    def rows(self, rows: list[int]) -> "Rows":
        return Rows([self.own[row] for row in rows])


def test_the_baseline_writes_too_and_follows_its_seed(token_generator: TextGenerator) -> None:
    texts = token_generator.generate(PROMPTS, seed=1, sampling=Sampling(0.8), max_new_tokens=9)
    assert token_generator.generate(PROMPTS[2:], seed=1, sampling=Sampling(0.8), max_new_tokens=9) == texts[2:]
    assert token_generator.generate(PROMPTS, seed=2, sampling=Sampling(0.8), max_new_tokens=9) != texts


def test_pieces_of_a_stream_are_whole_characters_and_make_the_text(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these characters takes several byte tokens, which chunks cut apart."""
    text = "the \u00fc\u20ac\U0001f600 old \u20ac port"
    write(generator, text, monkeypatch)
    pieces = [piece for _, piece in generator.stream([""], max_new_tokens=200)]
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(("stop", "kept"), [(" old", "the river flows past the"), ("er f", "the riv"), ("zzz", None)])
def test_a_stop_string_ends_the_text_before_it_and_is_never_streamed(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, stop: str, kept: str | None
) -> None:
    text = "the river flows past the old port"
    write(generator, text, monkeypatch)
    pieces = [piece for _, piece in generator.stream([""], max_new_tokens=200, stop=[stop, "never"])]
    assert "".join(pieces) == (text if kept is None else kept)


def test_a_beginning_of_a_stop_string_is_held_back_and_then_told(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(generator, "the river flows past the old port", monkeypatch)
    assert generator.generate([""], max_new_tokens=200, stop=["ports"]) == ["the river flows past the old port"]


def test_bad_arguments_are_refused(generator: TextGenerator) -> None:
    with pytest.raises(CalmError, match="2 seeds for 1 prompts"):
        generator.generate(["x"], seed=[1, 2])
    with pytest.raises(CalmError, match="stop string must not be empty"):
        generator.generate(["x"], stop=[""])
    for number in (0, -1, 10**12):
        with pytest.raises(CalmError, match=r"max_new_tokens must be a whole number from 1 to 1,048,576 \(got"):
            generator.generate(["x"], max_new_tokens=number)
    assert generator.generate([]) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompts": "the river"}, r"prompts must be a list of texts \(got the text 'the river'\)"),
        ({"prompts": None}, r"prompts must be a list of texts \(got null or NaN\)"),
        ({"prompts": ["x", None]}, "prompt 2: is null or NaN, and not a text"),
        ({"prompts": [b"x"]}, "prompt 1: is bytes, and not a text"),
        ({"prompts": np.array([1.5])}, "prompt 1: is the number 1.5, and not a text"),
        ({"prompts": [["x"]]}, "prompt 1: is a list, and not a text"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens must be a whole number from 1 .* \(got the number 1.5\)"),
        ({"max_new_tokens": "8"}, r"max_new_tokens must be a whole number from 1 .* \(got the text '8'\)"),
        ({"max_new_tokens": True}, r"max_new_tokens must be a whole number from 1 .* \(got true\)"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 9,223,372,036,854,775,807 \(got -1\)"),
        ({"seed": 2**63}, "seed must be a whole number from 0 to"),
        ({"seed": [0.5]}, r"seed 1 must be a whole number from 0 .* \(got the number 0.5\)"),
        ({"seed": "x"}, r"seed must be a whole number from 0 .* \(got the text 'x'\)"),
        ({"stop": [5]}, "stop string 1: is the number 5, and not a text"),
        ({"stop": None}, r"stop strings must be a list of texts \(got null or NaN\)"),
        ({"stop": ["x" * 1001]}, "stop string 1: has 1,001 characters; give at most 1,000"),
        ({"stop": ["x"] * 65}, "there are 65 stop strings; give at most 64"),
    ],
)
def test_an_argument_of_another_kind_is_one_line(
    generator: TextGenerator, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CalmError, match=f"^{reason}"):
        generator.generate(**({"prompts": ["x"]} | arguments))


@pytest.mark.parametrize("temperature", ["hot", None, True, [0.5]])
def test_a_temperature_of_another_kind_is_one_line(temperature: Any) -> None:
    with pytest.raises(
        CalmError, match=r"^temperature must be above 0 and at most 1, .* \(got (the text|null|true|a list)"
    ):
        Sampling(temperature)


def test_numpys_arguments_mean_the_same(generator: TextGenerator) -> None:
    plain = generator.generate(["the", "old"], max_new_tokens=3, seed=[1, 2], stop="x")
    assert plain == generator.generate(
        np.array(["the", "old"]), max_new_tokens=np.int64(3), seed=np.array([1, 2]), stop=np.array(["x"])
    )


def test_an_exhausted_budget_is_one_clear_line(generator: TextGenerator) -> None:
    """These samples are so diverse that ten draws hold no four equal ones."""
    with pytest.raises(
        CalmError, match=r"temperature 0.25: no chunk was accepted within 10 draws; raise the budget .*without --exact"
    ):
        generator.generate(["the river flows past"], sampling=Sampling(0.25, budget=10), max_new_tokens=40)


@pytest.mark.parametrize("number", [1, 3, 4, 5, 9])
def test_exactly_the_asked_number_of_tokens(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    told: list[int] = []
    add = Continuation.add
    monkeypatch.setattr(Continuation, "add", lambda self, ids: (told.extend(ids), add(self, ids))[1])
    generator.generate(["the river flows"], max_new_tokens=number, seed=3)
    assert len(told) == number


@pytest.mark.parametrize("prompt", ["", "t", "the", "the river", "the river flows past the old"])
def test_prompts_of_any_length(generator: TextGenerator, prompt: str) -> None:
    (text,) = generator.generate([prompt], max_new_tokens=8)
    assert isinstance(text, str)


def test_the_begun_chunk_keeps_the_prompt(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is fed the prompt's own tokens, also where they end inside a chunk, and no padding in between."""
    seen: list[torch.Tensor] = []
    embed = generator.model.embed
    monkeypatch.setattr(generator.model, "embed", lambda chunks: seen.append(chunks) or embed(chunks))
    prompt = "the river flows past the"
    tokens = generator.tokenizer.encode(prompt)
    assert len(tokens) % K, "the prompt must end inside a chunk for this test"
    generator.generate([prompt], max_new_tokens=K + 1)
    fed = torch.cat(seen, dim=1).flatten().tolist()
    boundary = [generator.tokenizer.eos_id] + [generator.tokenizer.pad_id] * (K - 1)
    assert fed[:K] == boundary
    assert fed[K : K + len(tokens)] == tokens


def test_an_end_of_text_inside_a_chunk_ends_the_text_there(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = generator.tokenizer.encode("a")[0], generator.tokenizer.encode("b")[0]
    chunk = torch.tensor([a, b, generator.tokenizer.eos_id, a])
    monkeypatch.setattr(generator.model, "choose", lambda hidden, *_: chunk.expand(len(hidden), K))
    assert generator.generate(["", ""], max_new_tokens=50) == ["ab", "ab"]


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5, float("nan"), 5e-324])
def test_an_impossible_temperature_is_refused(generator: TextGenerator, temperature: float) -> None:
    with pytest.raises(CalmError, match="temperature must be above 0 and at most 1"):
        generator.generate(["x"], sampling=Sampling(temperature))


@pytest.fixture
def contiguous(generator: TextGenerator) -> TextGenerator:
    """A model of documents that begin with a token of their own, anywhere in a chunk."""
    tokenizer = Tokenizer.train(["the river flows past the old port " * 20], 280, start_of_text=True)
    return TextGenerator(generator.model, tokenizer, "contiguous")


@pytest.mark.parametrize("prompt", ["", "t", "the river", "the river flows", "the river flows past the old port"])
def test_contiguous_text_begins_with_bos_and_ends_with_the_prompt(
    contiguous: TextGenerator, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the public code where the chunks come out even; else the prompt still touches what follows it."""
    seen: list[torch.Tensor] = []
    embed = contiguous.model.embed
    monkeypatch.setattr(contiguous.model, "embed", lambda chunks: seen.append(chunks) or embed(chunks))
    contiguous.generate([prompt], max_new_tokens=1)
    bos_id, tokens = contiguous.tokenizer.bos_id, contiguous.tokenizer.encode(prompt)
    assert bos_id is not None
    fed = seen[0].flatten().tolist()
    assert fed == [bos_id] * (-(len(tokens) + 1) % K) + [bos_id, *tokens]
    assert contiguous.tokenizer.pad_id not in fed


def test_the_start_of_the_next_document_ends_a_text(contiguous: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = contiguous.tokenizer.encode("a")[0], contiguous.tokenizer.encode("b")[0]
    chunk = torch.tensor([a, b, contiguous.tokenizer.bos_id, a])
    monkeypatch.setattr(contiguous.model, "choose", lambda hidden, *_: chunk.expand(len(hidden), K))
    assert contiguous.generate(["", "the"], max_new_tokens=50) == ["ab", "ab"]


def test_packed_documents_with_a_start_follow_the_end_of_another(
    contiguous: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = TextGenerator(contiguous.model, contiguous.tokenizer, "documents")
    eos_id, pad_id, bos_id = packed.tokenizer.eos_id, packed.tokenizer.pad_id, packed.tokenizer.bos_id
    ids = packed.tokenizer.encode("the river flows past")
    whole = (len(ids) + 1) // K * K
    assert packed._start(ids) == (
        [eos_id, *[pad_id] * (K - 1), *[bos_id, *ids][:whole]],
        [bos_id, *ids][whole:],
    )


@pytest.mark.parametrize("samples", [0, 10**12])
def test_an_impossible_number_of_samples_is_refused(samples: int) -> None:
    with pytest.raises(CalmError, match=r"samples must be a whole number from 1 to 1,048,576"):
        Sampling(0.5, samples=samples)


def test_half_a_character_is_refused_before_anything_is_written(generator: TextGenerator) -> None:
    """As Python gives it for an argument that is no UTF-8."""
    with pytest.raises(CalmError, match=r"prompt 2: holds half a character \(\\udce9 at 3\), which is no text"):
        generator.stream(["fine", "caf\udce9"])
    with pytest.raises(CalmError, match="stop string 1: holds half a character"):
        generator.stream(["fine"], stop=["\ud800"])


def test_a_prompt_that_is_too_long_to_read_is_refused(generator: TextGenerator) -> None:
    with pytest.raises(CalmError, match="prompt 2: has 200,000 tokens, and at most 131,072 are read"):
        generator.generate(["x", "z" * 200_000])


def test_the_space_after_a_prompt_is_written(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that writes no space before a text's first word: alone, the new tokens would lose theirs."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>"], show_progress=False)
    backend.train_from_iterator(["the old port flows"] * 4, trainer)
    spaced = TextGenerator(generator.model, Tokenizer.from_bytes(backend.to_str().encode(), 0, 1))
    prompt, text = "the old port", " flows the old"
    begun, whole = spaced.tokenizer.encode(prompt), [*spaced.tokenizer.encode(prompt + text), 1]
    whole += [1] * (-len(whole) % K)
    left = iter(torch.tensor(whole[len(begun) // K * K :]).view(-1, K))
    monkeypatch.setattr(spaced.model, "choose", lambda hidden, *_: next(left).expand(len(hidden), K))
    pieces = [piece for _, piece in spaced.stream([prompt], max_new_tokens=50)]
    assert prompt + "".join(pieces) == prompt + text
    assert len(pieces) > 1
