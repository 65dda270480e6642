"""The evaluation stage: autoencoder accuracy, BrierLM with intervals and references, and texts; an artifact itself."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calm_core import tracking
from calm_core.artifact import Artifact, ArtifactWriter
from calm_core.config import EvaluationConfig
from calm_core.data.loader import TokenDataset
from calm_core.evaluation.brier import BrierAccumulator, brier_terms, frequencies, next_tokens
from calm_core.evaluation.report import render_report
from calm_core.evaluation.samplers import CalmSampler, Sampler, UnigramSampler
from calm_core.generation import TextGenerator
from calm_core.models.autoencoder import Autoencoder, freeze, reconstruct, to_chunks
from calm_core.models.weights import load_autoencoder, load_calm, new_calm
from calm_core.noise import SequenceNoise, derive_seed
from calm_core.progress import report, reported

STAGE = "evaluate"
_FREQUENCY_SEQUENCES = 4096  # training sequences that the unigram reference counts


def evaluate(
    config: EvaluationConfig, dataset_uri: str, autoencoder_uri: str, calm_uri: str, output_uri: str, *, seed: int
) -> Artifact:
    """Score a CALM model on held-out text.

    Returns:
        An `evaluation` artifact: evaluation.json, report.html; its results hold the numbers.

    Raises:
        CalmError: An input is unusable, or the artifacts do not belong together.
    """
    settings = config.model_dump(mode="json") | {"seed": seed}
    with reported(STAGE), tracking.stage_run(STAGE, settings) as run:
        artifacts = {"autoencoder": Artifact(autoencoder_uri, "autoencoder"), "calm": Artifact(calm_uri, "calm")}
        dataset = TokenDataset(dataset_uri, "validation")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        autoencoder = load_autoencoder(artifacts["autoencoder"]).to(device)
        calm = load_calm(artifacts["calm"], artifacts["autoencoder"]).to(device)
        torch.manual_seed(derive_seed(seed, "untrained"))
        untrained = new_calm(artifacts["calm"]).to(device)
        for model in (autoencoder, calm, untrained):
            freeze(model)

        evaluator = Evaluator(config, dataset, autoencoder.config.chunk_size, seed, device)
        results: dict[str, Any] = {"autoencoder_accuracy": evaluator.autoencoder_accuracy(autoencoder)}
        started = time.monotonic()
        results |= evaluator.score(CalmSampler(calm, autoencoder), "BrierLM")
        score_seconds = time.monotonic() - started
        results["protocol"] = evaluator.protocol()
        unigram = UnigramSampler(_train_frequencies(dataset_uri).to(device), autoencoder.config.chunk_size)
        results["references"] = {
            "untrained": evaluator.score(CalmSampler(untrained, autoencoder), "untrained reference"),
            "unigram": evaluator.score(unigram, "unigram reference"),
        }
        started = time.monotonic()
        results["samples"] = _write_samples(config, TextGenerator(calm, autoencoder, dataset.tokenizer), seed)
        tokens = config.prompt_tokens * len(config.prompts)
        parents = {name: artifact.digest for name, artifact in artifacts.items()} | {"dataset": dataset.digest}
        with ArtifactWriter(output_uri, "evaluation", settings, parents) as writer:
            writer.results |= results
            writer.write("evaluation.json", json.dumps(results, indent=1, sort_keys=True).encode())
            curves = {name: _curves(artifact) for name, artifact in artifacts.items()}
            html = render_report(results, curves)
            writer.write("report.html", html.encode())
            writer.timings |= {
                "score_seconds": score_seconds,
                "generation_tokens_per_second": tokens / max(time.monotonic() - started, 1e-9),
            }
        run.log_metrics(_metrics(results))
        run.log_text(html, "report.html")
        evaluation = Artifact(output_uri, "evaluation")
        run.set_tags({tracking.DIGEST_TAG: evaluation.digest})
    score = results["brierlm"]
    report(STAGE, "finished", note=f"BrierLM {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]")
    return evaluation


class Evaluator:
    """Scores samplers on the same held-out positions with the same protocol.

    Args:
        config: Samples, number of sequences, intervals.
        dataset: The held-out split.
        chunk_size: K; scores start after every K-th token.
        seed: Of all noise.
        device: Where the samplers compute.
    """

    def __init__(
        self, config: EvaluationConfig, dataset: TokenDataset, chunk_size: int, seed: int, device: torch.device
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.chunk_size = chunk_size
        self.seed = seed
        self.device = device
        self.sequences = min(config.max_sequences, dataset.num_sequences)
        self._positions = 0

    def _batches(self, purpose: str) -> Iterator[tuple[Tensor, SequenceNoise]]:
        for start in range(0, self.sequences, self.config.batch_size):
            indices = np.arange(start, min(start + self.config.batch_size, self.sequences))
            seeds = [derive_seed(self.seed, purpose, i) for i in indices.tolist()]
            yield torch.from_numpy(self.dataset.rows(indices)).to(self.device), SequenceNoise(seeds, self.device)
            report(STAGE, done=int(indices[-1]) + 1, total=self.sequences, note=purpose)

    def autoencoder_accuracy(self, autoencoder: Autoencoder) -> float:
        """Share of real tokens that come back from sampled latents."""
        correct, total = 0, 0
        for tokens_BT, noise in self._batches("autoencoder accuracy"):
            chunks_BPK = to_chunks(tokens_BT, self.chunk_size)
            real_BPK = chunks_BPK != self.dataset.pad_id
            correct += int(((reconstruct(autoencoder, chunks_BPK, noise) == chunks_BPK) & real_BPK).sum())
            total += int(real_BPK.sum())
        return correct / max(total, 1)

    def score(self, sampler: Sampler, purpose: str) -> dict[str, Any]:
        """Brier-1..4, unclamped, as shares, and BrierLM in percent, each with its interval."""
        accumulator = BrierAccumulator()
        for tokens_BT, noise in self._batches(purpose):
            targets_BPT, counted_BP = next_tokens(tokens_BT, self.chunk_size, tokens_BT != self.dataset.pad_id)
            samples_BPST = sampler(tokens_BT, noise, self.config.samples)
            terms = brier_terms(samples_BPST.flatten(0, 1), targets_BPT.flatten(0, 1))
            accumulator.add(terms.unflatten(0, targets_BPT.shape[:2]), counted_BP)
        self._positions = accumulator.positions
        estimates = accumulator.estimates(self.config.bootstrap_resamples, self.config.confidence, self.seed)
        score = estimates.pop("brierlm")
        return {"brierlm": score.as_dict(), "brier": {n: estimate.as_dict() for n, estimate in estimates.items()}}

    def protocol(self) -> dict[str, Any]:
        """All that two scores must share to be compared."""
        return {
            "metric": "BrierLM",
            "split": "validation",
            "dataset": self.dataset.digest,
            "vocab_size": self.dataset.vocab_size,
            "sequence_length": self.dataset.sequence_length,
            "stride": self.dataset.sequence_length,
            "document_boundaries": "packed; attention crosses them; a position counts if its next 4 tokens are real",
            "chunk_size": self.chunk_size,
            "samples": self.config.samples,
            "sequences": self.sequences,
            "positions": self._positions,
            "interval": f"{self.config.confidence:.0%} bootstrap over sequences",
            "resamples": self.config.bootstrap_resamples,
            "seed": self.seed,
        }


def _train_frequencies(dataset_uri: str) -> Tensor:
    train = TokenDataset(dataset_uri, "train")
    rows = train.rows(np.arange(min(train.num_sequences, _FREQUENCY_SEQUENCES)))
    return frequencies(torch.from_numpy(rows), train.vocab_size, train.pad_id)


def _write_samples(config: EvaluationConfig, generator: TextGenerator, seed: int) -> list[dict[str, str]]:
    samples: list[dict[str, str]] = []
    for prompt in config.prompts:
        (text,) = generator.generate(
            [prompt],
            max_new_tokens=config.prompt_tokens,
            temperature=config.temperature,
            seed=seed,
            temperature_samples=config.temperature_samples,
        )
        samples.append({"prompt": prompt, "text": text})
        report(STAGE, done=len(samples), total=len(config.prompts), note="writing text")
    return samples


def _curves(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in artifact.read("curves.jsonl").splitlines()]


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    metrics = {"autoencoder_accuracy": results["autoencoder_accuracy"]}
    for name, estimate in {"brierlm": results["brierlm"]}.items():
        metrics |= {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    metrics |= {f"brier_{n}": estimate["value"] for n, estimate in results["brier"].items()}
    return metrics | {f"brierlm_{name}": ref["brierlm"]["value"] for name, ref in results["references"].items()}
