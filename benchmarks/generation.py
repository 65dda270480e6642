"""Writing: a temperature with pruned decoding against decoding all samples, and CALM against the baseline."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Row, compared, side_by_side
from benchmarks.sizes import SMALL, K, V, baseline, models, spread_samples
from calm_core.generation.temperature import FREE, choose_chunks, temperature_weights
from calm_core.generation.text import CalmChunks, NextChunk, Sampling, TransformerTokens
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.backbone import Branches
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise

BATCH, SAMPLES, TEMPERATURE, TOKENS = 8, 200, 0.5, 64


Choose = Callable[[Autoencoder, Tensor, Tensor, float, Tensor], Tensor]


def rows() -> Iterator[Row]:
    calm, autoencoder = models(SMALL, head_layers=4)
    hidden = torch.randn(BATCH, 256, generator=torch.Generator().manual_seed(0))
    free = torch.full((BATCH, K), FREE)
    for name, deviation in (("diverse", 10.0), ("between", 1.0), ("mostly equal", 0.05)):
        spread_samples(calm, deviation)

        @torch.no_grad()
        def chunk(choose: Choose, samples: int = SAMPLES, temperature: float = TEMPERATURE) -> Tensor:
            noise = SequenceNoise(range(BATCH))
            latents = calm.sample(hidden, calm.sampling_noise(noise, samples))
            return choose(autoencoder, latents, noise.uniform(1)[:, 0], temperature, free)

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
    autoencoder: Autoencoder, latents_BSL: Tensor, uniform_B: Tensor, temperature: float, begun_BK: Tensor
) -> Tensor:
    """Every sample decoded whole, then counted."""
    chunks_BSK = autoencoder.decode(latents_BSL)
    counts_BS = (chunks_BSK.unsqueeze(1) == chunks_BSK.unsqueeze(2)).all(-1).sum(-1)
    cumulative = temperature_weights(counts_BS, temperature).cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniform_B.double().unsqueeze(1), right=True)
    return chunks_BSK.gather(1, chosen.unsqueeze(2).expand(-1, -1, K))[:, 0]


def _writing(writer: NextChunk) -> Callable[[], object]:
    """TOKENS tokens for each of BATCH prompts of 32 tokens."""
    size = writer.chunk_size
    prompt = torch.randint(1, V, (BATCH, 32 // size, size), generator=torch.Generator().manual_seed(0))
    free = torch.full((BATCH, size), FREE)

    @torch.no_grad()
    def run() -> None:
        noise = SequenceNoise(range(BATCH))
        hidden, prefix = writer.backbone(writer.embed(prompt))
        branches, state = Branches(torch.full((BATCH, 1), prompt.shape[1] - 1), prefix), hidden[:, -1]
        for _ in range(TOKENS // size):
            chunk = writer.choose(state, free, noise, Sampling())
            states, branches = writer.backbone.branch(writer.embed(chunk.unsqueeze(1)), branches)
            state = states[:, 0]

    return run
