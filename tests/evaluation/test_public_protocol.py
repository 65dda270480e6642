"""The score of a contiguous data set against the public protocol's formula, written plainly."""

import numpy as np
import pytest
import torch
from torch import Tensor

from calm_core.config import CalmModelConfig, EnergyHeadConfig, EvaluationConfig, MlpAutoencoderConfig
from calm_core.data.preparing.packing import Packer
from calm_core.data.reading.order import Numbers
from calm_core.evaluation.evaluator import Evaluator
from calm_core.evaluation.samplers import CalmSampler
from calm_core.models.autoencoders.base import to_chunks
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.telemetry.stage import Stage

V, K, T = 7, 4, 24
SHAPE = {"hidden_size": 16, "intermediate_size": 16}
PAD, EOS, BOS = 0, 1, 2


class Packed:
    """The held-out split of a contiguous data set of random documents."""

    pad_id, eos_id, bos_id, packing = PAD, EOS, BOS, "contiguous"
    digest, tokenizer_sha256, vocab_size, sequence_length = "d", "t", V, T

    def __init__(self) -> None:
        numbers = np.random.default_rng(0)
        special = {"pad_id": PAD, "eos_id": EOS, "bos_id": BOS}
        packer = Packer(sequence_length=T, block_rows=4, document_alignment=8, packing="contiguous", **special)
        lengths = numbers.integers(0, 30, size=40)
        blocks = [b for n in lengths for b in packer.push(numbers.integers(3, V, size=n).astype(np.uint32))]
        self._rows = np.concatenate([*blocks, *packer.finish()]).astype(np.int64)
        self.num_sequences = len(self._rows)

    def rows(self, indices: Numbers) -> Numbers:
        return self._rows[indices]


def public_score(sampler: CalmSampler, rows: Tensor, seed: int) -> float:
    """Two samples after every chunk but the last: the mean of 1{x1 = y} + 1{x2 = y} - 1{x1 = x2} for n = 1..4.

    Every position counts, also where the chunk holds the end of a document and the start of the next.
    """
    calm, terms = sampler.calm, []
    for number, row in enumerate(rows):
        chunks = to_chunks(row.unsqueeze(0), K)
        noise = SequenceNoise([derive_seed(seed, "score", number)])
        drawn = calm.sampling_noise(noise, T // K - 1, 2)
        for position in range(T // K - 1):
            hidden, _ = calm.transformer(calm.embed(chunks[:, : position + 1]))
            first, second = sampler.autoencoder.decode(calm.sample(hidden[:, -1], drawn[:, position]))[0]
            truth = chunks[0, position + 1]
            pairs = ((first, truth), (second, truth), (first, second))
            hit_1, hit_2, same = ((a == b).cumprod(0).double() for a, b in pairs)
            terms.append(hit_1 + hit_2 - same)
    return 100 * torch.stack(terms).mean(0).clamp_min(0).prod().item() ** 0.25


def test_a_contiguous_set_is_scored_as_the_public_code_scores_it() -> None:
    torch.manual_seed(0)
    autoencoder = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=K, latent_size=6, **SHAPE), V)
    head = EnergyHeadConfig(num_layers=1, noise_size=4, model_samples=2)
    calm = Calm(CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, head=head, **SHAPE), V, K, 6)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight, std=0.3)
    freeze(autoencoder)
    freeze(calm)
    # A score above zero from a model that knows nothing: it always gives the tokens that the rows are made of.
    dataset = Packed()
    sampler = CalmSampler(calm, autoencoder, K)
    written = autoencoder.decode(calm.sample(torch.zeros(1, 16), torch.zeros(1, 1, 4)))[0, 0]
    dataset._rows[:, K:] = np.where(
        np.arange(T - K) % 8 < 4, np.tile(written.numpy(), T // K - 1), dataset._rows[:, K:]
    )

    config = EvaluationConfig(samples=2, batch_size=3, max_sequences=1000)
    with Stage("evaluate", {}) as stage:
        evaluator = Evaluator(config, dataset, K, K, 5, torch.device("cpu"), stage)  # type: ignore[arg-type]  # a stand-in
        documents = evaluator.score(sampler, "score")
    rows = torch.from_numpy(dataset.rows(np.arange(dataset.num_sequences)))
    expected = public_score(sampler, rows, 5)
    assert expected > 1
    assert evaluator.scores(documents).brierlm.value == pytest.approx(expected, rel=1e-9)
    assert documents.positions == dataset.num_sequences * (T // K - 1)
    protocol = evaluator.protocol(documents)
    assert (protocol["packing"], protocol["start_of_text"]) == ("contiguous", BOS)
