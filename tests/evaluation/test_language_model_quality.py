"""Where and how a language model is right, each number against a plain formula."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from calm_core.config import AUTOENCODERS, EvaluationConfig, MlpAutoencoderConfig
from calm_core.data.reading.dataset import open_dataset
from calm_core.evaluation import training_text
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.evaluator import Evaluator
from calm_core.evaluation.language_model_quality import (
    Counted,
    agreement,
    calibration,
    distances,
    place_scores,
    target_latents,
)
from calm_core.evaluation.samplers import TransformerScorer
from calm_core.evaluation.training_text import TrainingText, hash_of
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts
from tests.evaluation.test_samplers import S, make, small_transformer, targets, tokens


@pytest.mark.parametrize("spread", [0.0, 0.05, 2.0], ids=["all samples equal", "some equal", "diverse"])
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 8])
def test_what_is_shown_of_the_draws_changes_no_term(chunk_size: int, spread: float) -> None:
    """And the first sample of each position is whole: the one that is drawn alone, where no other draws beside it."""
    sampler, target = make(chunk_size, 8, spread), targets(chunk_size, 8)
    terms = sampler.terms(tokens(), target, SequenceNoise([0, 1]), S)
    draws = sampler.draw(tokens(), target, SequenceNoise([0, 1]), S)
    assert torch.equal(draws.terms_BPT, terms)
    positions = target.shape[1]
    noise, steps = SequenceNoise([0, 1]), -(-4 // chunk_size)
    drawn = [noise.uniform(positions, S, 4)]
    drawn += [noise.uniform(positions * S, 4).view(2, positions, S, 4) for _ in range(steps - 1)]
    for b, p in itertools.product(range(2), range(positions)):
        context = tokens()[b : b + 1, : 8 * (p + 1)].unflatten(-1, (-1, chunk_size))
        for step in range(steps):
            hidden, _ = sampler.calm.transformer(sampler.calm.embed(context))
            latent = sampler.calm.sample(hidden[:, -1], drawn[step][b, p, 0][None, None])
            context = torch.cat([context, sampler.autoencoder.decode(latent)], dim=1)
        assert draws.samples_BPST[b, p, 0].tolist() == context.flatten()[8 * (p + 1) :][:4].tolist()
        first = sampler.autoencoder.decode(draws.latents_BPSL)[b, p]
        assert draws.samples_BPST[b, p, :, 0].tolist() == first[:, 0].tolist()


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 8])
def test_the_bound_is_of_the_true_next_chunks_first_four_tokens(chunk_size: int, kind: str) -> None:
    sampler, target = make(chunk_size, 8, 2.0, kind), targets(chunk_size, 8)
    draws = sampler.draw(tokens(), target, SequenceNoise([0, 1]), S)
    for b, p in itertools.product(*map(range, target.shape[:2])):
        reads = sampler.autoencoder.reads
        before = torch.tensor([-1] * reads + tokens()[b, : 8 * (p + 1)].tolist())[8 * (p + 1) :]
        chunk = tokens()[b, 8 * (p + 1) :][:chunk_size]
        true = chunk[:4].tolist()
        chances = []
        for s in range(S):
            p_KV = sampler.autoencoder.logits(draws.latents_BPSL[b, p, s], before, chunk).double().softmax(-1)
            chances.append(p_KV[range(len(true)), true].prod().item())
        assert draws.nats_BP[b, p].item() == pytest.approx(-np.log(np.mean(chances)), rel=1e-5)


def test_a_transformers_is_exact() -> None:
    model = small_transformer(17)
    draws = TransformerScorer(model, 4).draw(tokens(), targets(1, 4), SequenceNoise([0, 1]), 2)
    hidden, _ = model.transformer(model.embed(tokens()))
    log_p = model.lm_head(hidden).double().log_softmax(-1)
    for b, p in itertools.product(*map(range, targets(1, 4).shape[:2])):
        first = 4 * (p + 1)
        expected = -sum(log_p[b, t - 1, tokens()[b, t]].item() for t in range(first, first + 4))
        assert draws.nats_BP[b, p].item() == pytest.approx(expected, rel=1e-5)


def test_perplexity_has_the_bootstrap_interval_of_its_mean_nats(dataset_uri: str) -> None:
    dataset = open_dataset(dataset_uri, "validation")
    evaluator = Evaluator(EvaluationConfig(samples=3), dataset, 4, 2, 0, torch.device("cpu"), None)
    nats = DocumentScores(np.arange(3), np.array([2.0, 5.0, 3.0]), np.array([[4.0], [20.0], [3.0]]))
    found = evaluator._perplexity(nats, MlpAutoencoder(MlpAutoencoderConfig(chunk_size=2), 17))
    assert (found.tokens, found.samples) == (2, 3)
    assert found.value == pytest.approx(np.exp(27 / 10 / 2))
    assert np.exp(1 / 2) <= found.low < found.value < found.high <= np.exp(4 / 2)  # of documents alone
    assert found.label == "perplexity of the next 2 tokens (upper bound from 3 samples)"
    exact = evaluator._perplexity(nats, None)
    assert exact.value == pytest.approx(np.exp(27 / 10 / 4))
    assert exact.label == "perplexity of the next 4 tokens (exact)"


def test_a_transformers_samples_are_its_own() -> None:
    """Of a vocabulary of two: the first tokens are drawn as often as their probability says, within 5 deviations."""
    model, repeats = small_transformer(2), 2000
    sequence = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1]])
    draws = TransformerScorer(model, 4).draw(
        sequence, torch.zeros(1, 1, 4, dtype=torch.int64), SequenceNoise([0]), repeats
    )
    hidden, _ = model.transformer(model.embed(sequence[:, :4]))
    probability = model.lm_head(hidden)[0, -1].softmax(-1)[1].item()
    share = draws.samples_BPST[0, 0, :, 0].double().mean().item()
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / repeats) ** 0.5)
    assert draws.samples_BPST.shape == (1, 1, repeats, 4)


def test_ranges_hold_each_position_once_and_have_its_scores() -> None:
    generator = np.random.default_rng(0)
    offset = np.array([0, 1, 2, 3, 4, 7, 8, 0, 1, 300])
    document = np.array([5] * 7 + [6] * 3)
    terms = generator.random((10, 4))
    counted = Counted(np.zeros(10, np.int64), document, offset, offset + 4, terms)
    found = place_scores(counted.by_range(offset), lambda documents: documents.scores(100, 0.9, 0))
    assert [(one.begin, one.end, one.positions) for one in found] == [
        (0, 1, 2), (1, 2, 2), (2, 4, 2), (4, 8, 2), (8, 16, 1), (256, 512, 1),
    ]  # fmt: skip
    for one in found:
        inside = (offset >= one.begin) & (offset < one.end)
        for n in range(4):
            score = one.scores.brier[str(n + 1)]
            assert score.value == pytest.approx(terms[inside, n].mean())
            assert (score.low is None) == (len(set(document[inside])) == 1)


def test_agreement_and_its_calibration_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 3, (400, 5, 4), generator=generator)
    true = torch.randint(0, 3, (400,), generator=generator)
    counts = agreement(samples, true)
    expected: Counter[tuple[int, bool]] = Counter()
    for row, token in zip(samples[..., 0].tolist(), true.tolist(), strict=True):
        ((mode, times),) = Counter(row).most_common(1)  # of several the one that came first
        expected[times, mode == token] += 1
    assert counts["positions"].tolist() == [[expected[c, True] + expected[c, False] for c in range(6)]]
    assert counts["hits"].tolist() == [[expected[c, True] for c in range(6)]]

    found = calibration(counts["positions"][0], counts["hits"][0])
    assert [(one.begin, one.end) for one in found.bins] == [(0.3, 0.4), (0.5, 0.6), (0.7, 0.8), (0.9, 1.0)]
    error = sum(abs(expected[c, True] - c / 5 * (expected[c, True] + expected[c, False])) for c in range(1, 6)) / 400
    assert found.expected_error == pytest.approx(error)  # each number of samples that agree has a bin of its own
    assert sum(one.positions for one in found.bins) == 400


def test_a_model_that_is_right_as_often_as_it_agrees_is_calibrated() -> None:
    positions, hits = np.array([0, 0, 500, 0, 300]), np.array([0, 0, 250, 0, 300])
    assert calibration(positions, hits).expected_error == 0
    assert calibration(positions, np.zeros(5, int)).expected_error == pytest.approx((500 * 0.5 + 300) / 800)


def test_distances_are_those_of_a_loop_over_pairs() -> None:
    samples = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    other = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
    for number, found in enumerate(distances(samples, other).tolist()):
        across = [(a - b).norm() for a in samples[number] for b in other[number]]
        within = [[(a - b).norm() for a, b in itertools.combinations(one[number], 2)] for one in (samples, other)]
        assert found == pytest.approx([float(torch.stack(pairs).mean()) for pairs in (across, *within)], rel=1e-5)


@pytest.mark.parametrize(("chunk_size", "interval"), [(1, 4), (2, 4), (4, 4), (8, 8), (4, 8)])
def test_targets_are_latents_of_the_chunk_behind_each_position(chunk_size: int, interval: int) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16}
    autoencoder = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=chunk_size, latent_size=6, **shape), 17)
    freeze(autoencoder)
    positions = targets(chunk_size, interval).shape[1]
    latents = target_latents(autoencoder, tokens(), interval, positions, 3, SequenceNoise([0, 1]))
    normal = SequenceNoise([0, 1]).normal(positions, 3, 6)
    for b, p in itertools.product(range(2), range(positions)):
        chunk = tokens()[b, interval * (p + 1) :][:chunk_size]
        posterior = autoencoder.encode(chunk[None])
        torch.testing.assert_close(latents[b, p], posterior.mean + posterior.std * normal[b, p], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocab_size", [300, 2**16, 2**17 + 5])
def test_equal_4_grams_alone_have_equal_hashes(vocab_size: int) -> None:
    grams = np.random.default_rng(0).integers(0, vocab_size, size=(100_000, 4))
    grams[:100] = grams[100:200]
    grams = np.concatenate([grams, grams[:, ::-1], np.full((1, 4), vocab_size - 1)])
    assert len(np.unique(hash_of(grams, vocab_size))) == len(np.unique(grams, axis=0))


def test_training_text_is_what_a_loop_finds(dataset_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 4-grams only as far as the bound says, which holds whole sequences."""
    train = open_dataset(dataset_uri, "train")
    monkeypatch.setattr(training_text, "GRAM_TOKENS", 100 * train.sequence_length + 5)
    text = TrainingText.read(dataset_uri)
    rows = train.rows(np.arange(train.num_sequences)).tolist()
    assert len(rows) > 100
    counts = Counter(token for row in rows for token in row if token != train.pad_id)
    assert text.counts_V.tolist() == [counts[token] for token in range(train.vocab_size)]
    known = {
        tuple(row[i : i + 4]) for row in rows[:100] for i in range(len(row) - 3) if train.pad_id not in row[i : i + 4]
    }
    assert text.known is not None and len(text.known) == len(known)
    every = {tuple(row[i : i + 4]) for row in rows for i in range(len(row) - 3)}
    assert text.number_known(np.array(sorted(every))) == len(known) < len(every)


def test_an_evaluation_tells_all_of_it(evaluation_uri: str, dataset_uri: str) -> None:
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    found = evaluation.facts.language_model
    assert found is not None and found.distances is not None and found.known_4grams is not None
    positions = evaluation.facts.protocol["positions"]
    for places in (found.by_document_position, found.by_context_length):
        assert sum(place.positions for place in places) == positions
        for n in ("1", "4"):
            mean = sum(place.positions * place.scores.brier[n].value for place in places) / int(positions)
            assert mean == pytest.approx(evaluation.facts.brier[n].value)
    assert found.by_context_length[0].begin == 4 and found.by_context_length[-1].end == 32
    assert sum(one.positions for one in found.calibration.bins) == positions
    assert found.perplexity is not None and (found.perplexity.tokens, found.perplexity.samples) == (4, 2)
    assert 1 < found.perplexity.low < found.perplexity.value < found.perplexity.high
    assert found.distances.between_targets > 0 and found.known_4grams.true > found.known_4grams.sampled


def test_of_data_without_training_text_nothing_is_known() -> None:
    text = TrainingText(torch.ones(4, dtype=torch.int64), None)
    assert text.number_known(np.zeros((3, 4), np.int64)) == 0
    assert text.frequencies.tolist() == [0.25] * 4
