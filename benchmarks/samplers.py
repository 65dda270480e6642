"""Ways to a temperature: what a model of ours writes by each, and what that costs beside temperature 1.

    python -m benchmarks samplers --model out/calm --dataset out/dataset

States come from held-out text. After each, every sampler draws chunks: `hit` is the share of first tokens, and of whole
chunks, that are true, `equal` the share of pairs of chunks that agree, Brier-1 = 2 hit - equal of first tokens, `known`
the share of 4-grams that training text has, `far` the total variation from P^(1/T) as it is counted in POOL samples;
what as many draws from that itself have is in the row `P^(1/T)`. Texts continue the beginnings of held-out documents.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calm_core.config.evaluation import SAMPLERS, SamplerName
from calm_core.data.reading.dataset import Dataset, open_dataset
from calm_core.errors import CalmError
from calm_core.evaluation import diversity
from calm_core.evaluation.prompts import beginnings
from calm_core.evaluation.training_text import TrainingText
from calm_core.generation.samplers.base import OneLatent
from calm_core.generation.sampling import Sampling
from calm_core.generation.temperature import FREE, TextSoFar, temperature_weights
from calm_core.generation.text import CalmChunks, TextGenerator
from calm_core.models.autoencoders.base import to_chunks
from calm_core.models.noise import SequenceNoise
from calm_core.registry.load import load_generator

POOL = 1600
"""Samples after a state, by which P^(1/T) is enumerated."""
LONGEST = 4
COLUMNS = (
    *("sampler", "T", "hit 1", "equal 1", "Brier-1", f"hit {LONGEST}", f"equal {LONGEST}", "known", "far"),
    *("text: repetition", "distinct-2", "known", "tokens/CPU-s", "cost"),
)


class _States(NamedTuple):
    """States of text [R, D], the tokens before each's chunk, int64 [R, W], and the true chunk, int64 [R, K]."""

    hidden_RD: Tensor
    before_RW: Tensor
    true_RK: Tensor


def main(arguments: list[str]) -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks samplers", description=__doc__)
    parser.add_argument("--model", required=True, help="a CALM model, by URI")
    parser.add_argument("--autoencoder", default="", help="unset, where it was when the model was trained")
    parser.add_argument("--dataset", required=True, help="whose held-out text is continued")
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--draws", type=int, default=32, help="chunks after each state; of batch a quarter")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.7, 0.5, 0.3])
    parser.add_argument(
        "--samplers", nargs="*", choices=SAMPLERS, default=[name for name in SAMPLERS if name != "exact"]
    )
    asked = parser.parse_args(arguments)
    generator = load_generator(asked.model, asked.autoencoder)
    if not isinstance(generator.model, CalmChunks):
        sys.exit(f"{asked.model}: is no CALM model; only those need a sampler")
    torch.set_num_threads(1)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows(generator, generator.model, asked):
        print("| " + " | ".join(row) + " |", flush=True)


@torch.no_grad()
def rows(generator: TextGenerator, model: CalmChunks, asked: argparse.Namespace) -> Iterator[list[str]]:
    """One for each sampler and temperature; the plain one, and P^(1/T), come first."""
    dataset, text = open_dataset(asked.dataset, "validation"), TrainingText.read(asked.dataset)
    states = _states(model, dataset, asked.states)
    true_RK, pool_RSK = states.true_RK, _pool(model, states)
    targets = {T: [_power(chunks_SK, T) for chunks_SK in pool_RSK] for T in asked.temperatures}
    prompts = beginnings(dataset, asked.prompts)
    plain = _Written(generator, prompts, asked.tokens, Sampling(), text)
    yield ["(temperature 1)", "1", *_scores(pool_RSK[:, : asked.draws], true_RK, text, None), *plain.cells(plain)]
    for temperature in asked.temperatures:
        drawn = torch.stack([_drawn(target, asked.draws, row) for row, target in enumerate(targets[temperature])])
        yield [
            "P^(1/T)",
            f"{temperature:g}",
            *_scores(drawn, true_RK, text, targets[temperature]),
            *[""] * 5,
        ]
        for name in asked.samplers:
            yield _row(generator, model, states, name, temperature, targets[temperature], plain, asked, text)


def _row(
    generator: TextGenerator,
    model: CalmChunks,
    states: _States,
    name: SamplerName,
    temperature: float,
    target: list[Counter[tuple[int, ...]]],
    plain: "_Written",
    asked: argparse.Namespace,
    text: TrainingText,
) -> list[str]:
    sampling = Sampling(temperature, sampler=name)
    draws = asked.draws // 4 if name in ("batch", "exact") else asked.draws
    try:
        drawn_RMK = torch.stack([_draw(model, states, m, sampling) for m in range(draws)], 1)
    except CalmError as error:
        return [name, f"{temperature:g}", str(error), *[""] * (len(COLUMNS) - 3)]
    written = _Written(generator, plain.prompts, asked.tokens, sampling, text)
    return [name, f"{temperature:g}", *_scores(drawn_RMK, states.true_RK, text, target), *written.cells(plain)]


def _states(model: CalmChunks, dataset: Dataset, number: int) -> _States:
    """Of held-out text."""
    tokens = torch.from_numpy(dataset.rows(np.arange(min(dataset.num_sequences, 32))))
    chunks_BPK = to_chunks(tokens, model.chunk_size)
    hidden_BPD, _ = model.backbone(model.embed(chunks_BPK[:, :-1]))
    whole_BP = (chunks_BPK[:, 1:] != dataset.pad_id).all(-1)
    chosen = torch.randperm(int(whole_BP.sum()), generator=torch.Generator().manual_seed(0))[:number]
    before_BPW = model.autoencoder.before(chunks_BPK)[:, 1:]
    return _States(*(of[whole_BP][chosen] for of in (hidden_BPD, before_BPW, chunks_BPK[:, 1:])))


def _pool(model: CalmChunks, states: _States) -> Tensor:
    """POOL samples at temperature 1 after each state, int64 [R, POOL, K]."""
    sampler, pool = OneLatent(model.calm, model.autoencoder), []
    for row, before_W in enumerate(states.before_RW):
        latents = sampler.plain_latents(states.hidden_RD[[row]], SequenceNoise([row]), POOL)
        pool.append(model.autoencoder.decode(latents, before_W)[0])
    return torch.stack(pool)


def _draw(model: CalmChunks, states: _States, number: int, sampling: Sampling) -> Tensor:
    """One chunk after each state, int64 [R, K]."""
    rows = len(states.before_RW)
    text = TextSoFar(states.before_RW, torch.full_like(states.true_RK, FREE))
    seeds = [10**6 + number * rows + row for row in range(rows)]
    return model.choose(states.hidden_RD, text, SequenceNoise(seeds), sampling)


def _power(chunks_SK: Tensor, temperature: float) -> Counter[tuple[int, ...]]:
    """P^(1/T) as the samples tell it."""
    unique, inverse, counts = torch.unique(chunks_SK, dim=0, return_inverse=True, return_counts=True)
    weights = temperature_weights(counts[inverse].unsqueeze(0), temperature)[0]
    shares = torch.zeros(len(unique), dtype=torch.float64).index_add_(0, inverse, weights)
    return Counter(dict(zip(map(tuple, unique.tolist()), shares.tolist(), strict=True)))


def _drawn(target: Counter[tuple[int, ...]], number: int, seed: int) -> Tensor:
    weights = torch.tensor([*target.values()])
    places = torch.multinomial(weights, number, replacement=True, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([*target])[places]


def _scores(
    drawn_RMK: Tensor, true_RK: Tensor, text: TrainingText, targets: list[Counter[tuple[int, ...]]] | None
) -> list[str]:
    hits, equal = {}, {}
    for n in (1, min(LONGEST, drawn_RMK.shape[-1])):
        hits[n] = (drawn_RMK[..., :n] == true_RK[:, None, :n]).all(-1).double().mean().item()
        same_RMM = (drawn_RMK[:, :, None, :n] == drawn_RMK[:, None, :, :n]).all(-1).double()
        m = drawn_RMK.shape[1]
        equal[n] = ((same_RMM.sum((1, 2)) - m) / (m * (m - 1))).mean().item()
    cells = [hits[1], equal[1], 2 * hits[1] - equal[1], hits[max(hits)], equal[max(equal)]]
    grams = drawn_RMK[..., :LONGEST].flatten(0, -2)
    known = text.number_known(grams.numpy()) / len(grams) if grams.shape[-1] == LONGEST else float("nan")
    far = "" if targets is None else f"{np.mean([_apart(d, t) for d, t in zip(drawn_RMK, targets, strict=True)]):.3f}"
    return [*(f"{cell:.3f}" for cell in (*cells, known)), far]


def _apart(drawn_MK: Tensor, target: Counter[tuple[int, ...]]) -> float:
    """Total variation."""
    counts = Counter(map(tuple, drawn_MK.tolist()))
    shares = {chunk: count / len(drawn_MK) for chunk, count in counts.items()}
    return sum(abs(shares.get(chunk, 0.0) - target[chunk]) for chunk in shares.keys() | target.keys()) / 2


class _Written:
    """Texts, and what they cost."""

    def __init__(
        self, generator: TextGenerator, prompts: tuple[str, ...], tokens: int, sampling: Sampling, text: TrainingText
    ) -> None:
        self.prompts = prompts
        started = time.process_time()
        written = generator.write(prompts, max_new_tokens=tokens, sampling=sampling, seed=[*range(len(prompts))])
        self.speed = sum(len(one.tokens) for one in written) / (time.process_time() - started)
        measured = diversity.measure(prompts, written, sampling.temperature)
        self.repetition, self.distinct = measured.repetition, measured.distinct.get("2", float("nan"))
        windows = [w for one in written for w in zip(*(one.tokens[i:] for i in range(LONGEST)), strict=False)]
        self.known = text.number_known(np.array(windows)) / len(windows) if windows else float("nan")

    def cells(self, plain: "_Written") -> list[str]:
        shares = (f"{value:.3f}" for value in (self.repetition, self.distinct, self.known))
        return [*shares, f"{self.speed:,.0f}", f"{plain.speed / self.speed:.2f}"]
