"""Writing: a temperature with pruned decoding, many prompts in one call, and CALM against the baseline."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.corpus import texts_of
from benchmarks.measure import Row, compared, in_turns, metered, side_by_side
from benchmarks.sizes import SMALL, K, V, baseline, models, spread_samples
from calm_core.data.sources.factbook import write_factbook
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.generation.sampling import Sampling
from calm_core.generation.temperature import FREE, TextSoFar, choose_chunks, temperature_weights
from calm_core.generation.text import CalmChunks, NextChunk, TextGenerator, TransformerTokens
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.backbone import Branches
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.registry.served import CalmTextModel

BATCH, SAMPLES, TEMPERATURE, TOKENS = 8, 200, 0.5, 64
PROMPTS = 64


Choose = Callable[[Autoencoder, Tensor, Tensor, float, TextSoFar], Tensor]


def rows() -> Iterator[Row]:
    calm, autoencoder = models(SMALL, head_layers=4)
    hidden = torch.randn(BATCH, 256, generator=torch.Generator().manual_seed(0))
    text = TextSoFar(torch.zeros(BATCH, 0, dtype=torch.int64), torch.full((BATCH, K), FREE))
    for name, deviation in (("diverse", 10.0), ("between", 1.0), ("mostly equal", 0.05)):
        spread_samples(calm, deviation)

        @torch.no_grad()
        def chunk(choose: Choose, samples: int = SAMPLES, temperature: float = TEMPERATURE) -> Tensor:
            noise = SequenceNoise(range(BATCH))
            latents = calm.sample(hidden, calm.sampling_noise(noise, samples))
            return choose(autoencoder, latents, noise.uniform(1)[:, 0], temperature, text)

        assert torch.equal(chunk(_choose_from_all), chunk(choose_chunks)), "both must choose the same chunks"
        seconds = side_by_side(
            {
                "all": lambda: chunk(_choose_from_all),
                "ours": lambda: chunk(choose_chunks),
                "T = 1": lambda: chunk(choose_chunks, 1, 1.0),
            },
            repeats=7,
        )
        what = f"a chunk at T {TEMPERATURE}, S {SAMPLES}, batch {BATCH}, V {V:,}, samples {name}"
        pair = {"all": seconds["all"], "ours": seconds["ours"]}
        yield compared(f"{what}: all samples decoded", pair, target=2 if name == "diverse" else 0)
        yield compared(f"{what}: ours against T = 1", {"T": seconds["T = 1"], "ours": seconds["ours"]})


def serving_rows() -> Iterator[Row]:
    """A call with many prompts against a call for each; random weights, so no sample fits a chunk that is begun."""
    with tempfile.TemporaryDirectory() as folder:
        write_factbook(Path(folder) / "factbook.jsonl")
        documents = texts_of(Path(folder) / "factbook.jsonl")
    tokenizer = Tokenizer.train(documents, 2048)
    calm, autoencoder = models(SMALL, head_layers=4, vocab_size=tokenizer.vocab_size)
    spread_samples(calm, 10.0)
    freeze(calm)
    model = CalmTextModel(TextGenerator(CalmChunks(calm, autoencoder), tokenizer))
    prompts = [" ".join(document.split()[:8]) for document in documents[:PROMPTS]]
    for temperature, samples, tokens, target in ((1.0, SAMPLES, TOKENS, 5), (0.5, 25, 16, 0), (0.5, SAMPLES, 16, 0)):
        params = {"temperature": temperature, "samples": samples, "max_new_tokens": tokens}

        def alone(params: dict[str, float] = params) -> list[str]:
            return [model.predict(prompt, params)[0] for prompt in prompts]

        def together(params: dict[str, float] = params) -> list[str]:
            return model.predict(prompts, params)

        assert alone() == together(), "a prompt's text must not depend on the others"
        used = in_turns({"alone": partial(metered, alone), "together": partial(metered, together)}, repeats=3)
        seconds = {name: numbers["cpu_seconds"] for name, numbers in used.items()}
        speed = {name: f"{PROMPTS * tokens / s:,.0f} tokens/CPU-s" for name, s in seconds.items()}
        at = f"T {temperature:g}" + (f", S {samples}" if temperature < 1 else "")
        yield Row(
            f"{PROMPTS} prompts in one call against a call for each, {tokens} tokens, {at}",
            speed["alone"],
            speed["together"],
            seconds["alone"] / seconds["together"],
            target,
        )


def baseline_rows() -> Iterator[Row]:
    for vocab_size in (V, 128_256):
        calm, autoencoder = models(SMALL, head_layers=4, vocab_size=vocab_size)
        transformer = baseline(SMALL, vocab_size)
        freeze(calm)
        freeze(transformer)
        writers: dict[str, NextChunk] = {
            "baseline": TransformerTokens(transformer),
            "CALM": CalmChunks(calm, autoencoder),
        }
        seconds = side_by_side({name: _writing(writer) for name, writer in writers.items()}, repeats=3)
        speed = {name: BATCH * TOKENS / s for name, s in seconds.items()}
        yield Row(
            f"generation at T = 1, batch {BATCH}, CALM against the baseline, V {vocab_size:,}",
            f"{speed['baseline']:,.0f} tokens/s",
            f"{speed['CALM']:,.0f} tokens/s",
            speed["CALM"] / speed["baseline"],
        )


def _choose_from_all(
    autoencoder: Autoencoder, latents_BSL: Tensor, uniform_B: Tensor, temperature: float, text: TextSoFar
) -> Tensor:
    """Every sample decoded whole, then counted."""
    chunks_BSK = autoencoder.decode(latents_BSL, text.before_BW.unsqueeze(1))
    counts_BS = (chunks_BSK.unsqueeze(1) == chunks_BSK.unsqueeze(2)).all(-1).sum(-1)
    cumulative = temperature_weights(counts_BS, temperature).cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniform_B.double().unsqueeze(1), right=True)
    return chunks_BSK.gather(1, chosen.unsqueeze(2).expand(-1, -1, K))[:, 0]


def _writing(writer: NextChunk) -> Callable[[], object]:
    """TOKENS tokens for each of BATCH prompts of 32 tokens."""
    size = writer.chunk_size
    prompt = torch.randint(1, V, (BATCH, 32 // size, size), generator=torch.Generator().manual_seed(0))
    text = TextSoFar(prompt.new_zeros(BATCH, writer.reads), torch.full((BATCH, size), FREE))

    @torch.no_grad()
    def run() -> None:
        noise = SequenceNoise(range(BATCH))
        hidden, prefix = writer.backbone(writer.embed(prompt))
        branches, state = Branches(torch.full((BATCH, 1), prompt.shape[1] - 1), prefix), hidden[:, -1]
        for _ in range(TOKENS // size):
            chunk = writer.choose(state, text, noise, Sampling())
            states, branches = writer.backbone.branch(writer.embed(chunk.unsqueeze(1)), branches)
            state = states[:, 0]

    return run
