"""The evaluation stage: autoencoder accuracy, BrierLM with intervals and references, and texts; an artifact itself."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calm_core.config import EvaluationConfig
from calm_core.data.reading.loader import Mixture, TokenDataset, open_dataset
from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.brier import MAX_N, BrierAccumulator, frequencies, next_tokens
from calm_core.evaluation.report import Curve, render_report
from calm_core.evaluation.samplers import BrierModel, CalmSampler, TransformerScorer, UnigramSampler
from calm_core.generation.text import CalmChunks, NextChunk, Sampling, TextGenerator, TransformerTokens
from calm_core.models.autoencoders.mlp import Autoencoder, reconstruct, to_chunks
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.telemetry import mlflow_run
from calm_core.telemetry.progress import report, reported
from calm_core.weights.load import load_autoencoder, load_calm, load_transformer, new_calm, new_transformer

_FREQUENCY_SEQUENCES = 4096  # training sequences that the unigram reference counts


def stage_name(kind: str) -> str:
    """The stage that scores a kind of model."""
    return "evaluate" if kind == "calm" else f"evaluate-{kind}"


def evaluate(
    config: EvaluationConfig, dataset_uri: str, model_uri: str, output_uri: str, *, seed: int, autoencoder_uri: str = ""
) -> Artifact:
    """Score a language model on held-out text, and let it write.

    Args:
        config: The protocol.
        dataset_uri: A `dataset` artifact.
        model_uri: A `calm` or a `transformer` artifact.
        output_uri: Where the `evaluation` artifact is written: evaluation.json, report.html; its results hold the
            numbers.
        seed: Of all noise.
        autoencoder_uri: The autoencoder of a CALM model.

    Raises:
        CalmError: An input is unusable, or the artifacts do not belong together.
    """
    settings = config.model_dump(mode="json") | {"seed": seed}
    artifact = Artifact(model_uri, "calm", "transformer")
    stage = stage_name(artifact.manifest.kind)
    with reported(stage), mlflow_run.stage_run(stage, settings) as run:
        dataset = open_dataset(dataset_uri, "validation")
        _require_same_tokenizer(artifact, dataset)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(derive_seed(seed, "untrained"))
        scored = (
            _calm(artifact, Artifact(autoencoder_uri, "autoencoder"), device)
            if artifact.manifest.kind == "calm"
            else _transformer(artifact, device)
        )
        interval = config.position_interval or math.lcm(MAX_N, scored.chunk_size)
        if interval % scored.chunk_size:
            raise CalmError(f"position_interval ({interval}) must be a multiple of K ({scored.chunk_size})")
        evaluator = Evaluator(config, dataset, interval, scored.chunk_size, seed, device, stage)
        results: dict[str, Any] = {"model": scored.label}
        if scored.autoencoder is not None:
            results["autoencoder_accuracy"] = evaluator.autoencoder_accuracy(scored.autoencoder)
        started = time.monotonic()
        results |= evaluator.score(scored.model(interval), "BrierLM")
        score_seconds = time.monotonic() - started
        results["protocol"] = evaluator.protocol()
        frequency = _train_frequencies(dataset_uri).to(device)
        results["references"] = {
            "untrained": evaluator.score(scored.untrained(interval), "untrained reference"),
            "unigram": evaluator.score(UnigramSampler(frequency), "unigram reference"),
        }
        started = time.monotonic()
        results["samples"] = _write_samples(config, TextGenerator(scored.writer, dataset.tokenizer), seed, stage)
        tokens = config.prompt_tokens * len(config.prompts)
        parents = scored.parents | {"dataset": dataset.digest}
        with ArtifactWriter(output_uri, "evaluation", settings, parents) as writer:
            writer.results |= results
            writer.write("evaluation.json", json.dumps(results, indent=1, sort_keys=True).encode())
            html = render_report(results, scored.curves)
            writer.write("report.html", html.encode())
            writer.timings |= {
                "score_seconds": score_seconds,
                "generation_tokens_per_second": tokens / max(time.monotonic() - started, 1e-9),
            }
        run.log_metrics(_metrics(results))
        run.log_text(html, "report.html")
        evaluation = Artifact(output_uri, "evaluation")
        run.set_tags({mlflow_run.DIGEST_TAG: evaluation.digest})
    score = results["brierlm"]
    report(stage, "finished", note=f"BrierLM {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]")
    return evaluation


@dataclass(frozen=True)
class _Scored:
    """A trained model of either kind, as the evaluation needs it.

    Attributes:
        model, untrained: What is scored, given the interval of the positions.
        curves: Points of training curves, by the picture's title and the curve's name.
    """

    label: str
    chunk_size: int
    parents: dict[str, str]
    model: Callable[[int], BrierModel]
    untrained: Callable[[int], BrierModel]
    writer: NextChunk
    curves: dict[tuple[str, str], Curve]
    autoencoder: Autoencoder | None = None


def _calm(artifact: Artifact, autoencoder_artifact: Artifact, device: torch.device) -> _Scored:
    autoencoder = load_autoencoder(autoencoder_artifact).to(device)
    calm = load_calm(artifact, autoencoder_artifact).to(device)
    untrained = new_calm(artifact).to(device)
    for model in (autoencoder, calm, untrained):
        freeze(model)
    return _Scored(
        label=f"CALM, K = {calm.chunk_size}, {calm.config.head} head",
        chunk_size=calm.chunk_size,
        parents={"autoencoder": autoencoder_artifact.digest, "calm": artifact.digest},
        model=lambda interval: CalmSampler(calm, autoencoder, interval),
        untrained=lambda interval: CalmSampler(untrained, autoencoder, interval),
        writer=CalmChunks(calm, autoencoder),
        curves={
            ("Autoencoder: token accuracy", "accuracy"): _curve(autoencoder_artifact),
            ("CALM: loss of the head", f"{calm.config.head}_loss"): _curve(artifact),
        },
        autoencoder=autoencoder,
    )


def _transformer(artifact: Artifact, device: torch.device) -> _Scored:
    model, untrained = load_transformer(artifact).to(device), new_transformer(artifact).to(device)
    freeze(model)
    freeze(untrained)
    return _Scored(
        label="Transformer over tokens",
        chunk_size=1,
        parents={"transformer": artifact.digest},
        model=lambda interval: TransformerScorer(model, interval),
        untrained=lambda interval: TransformerScorer(untrained, interval),
        writer=TransformerTokens(model),
        curves={("Transformer: cross-entropy, nats a token", "cross_entropy"): _curve(artifact)},
    )


class Evaluator:
    """Scores models on the same held-out positions with the same protocol.

    Args:
        config: Samples, number of sequences, confidence.
        dataset: The held-out split.
        interval: Tokens between two scored positions.
        chunk_size: K of the model; the positions are the same for every K up to 4 that divides the interval.
        seed: Of all noise.
        device: Where the models compute.
        stage: Name under which progress is reported.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        dataset: TokenDataset | Mixture,
        interval: int,
        chunk_size: int,
        seed: int,
        device: torch.device,
        stage: str,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.interval = interval
        self.chunk_size = chunk_size
        self.seed = seed
        self.device = device
        self.stage = stage
        self.sequences = min(config.max_sequences, dataset.num_sequences)
        self._positions = 0

    def _batches(self, purpose: str) -> Iterator[tuple[Tensor, SequenceNoise]]:
        for start in range(0, self.sequences, self.config.batch_size):
            indices = np.arange(start, min(start + self.config.batch_size, self.sequences))
            seeds = [derive_seed(self.seed, purpose, i) for i in indices.tolist()]
            yield torch.from_numpy(self.dataset.rows(indices)).to(self.device), SequenceNoise(seeds, self.device)
            report(self.stage, done=int(indices[-1]) + 1, total=self.sequences, note=purpose)

    def autoencoder_accuracy(self, autoencoder: Autoencoder) -> float:
        """Share of real tokens that come back from sampled latents."""
        correct, total = 0, 0
        for tokens_BT, noise in self._batches("autoencoder accuracy"):
            chunks_BPK = to_chunks(tokens_BT, self.chunk_size)
            real_BPK = chunks_BPK != self.dataset.pad_id
            correct += int(((reconstruct(autoencoder, chunks_BPK, noise) == chunks_BPK) & real_BPK).sum())
            total += int(real_BPK.sum())
        return correct / max(total, 1)

    def score(self, model: BrierModel, purpose: str) -> dict[str, Any]:
        """Brier-1..4, unclamped, as shares, and BrierLM in percent, each with its interval."""
        accumulator = BrierAccumulator()
        for tokens_BT, noise in self._batches(purpose):
            real_BT = tokens_BT != self.dataset.pad_id
            targets_BPT, counted_BP = next_tokens(tokens_BT, self.interval, self.chunk_size, real_BT)
            accumulator.add(model.terms(tokens_BT, targets_BPT, noise, self.config.samples), counted_BP)
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
            "tokenizer": self.dataset.tokenizer_sha256,
            "vocab_size": self.dataset.vocab_size,
            "sequence_length": self.dataset.sequence_length,
            "stride": self.dataset.sequence_length,
            "position_interval": self.interval,
            "document_boundaries": "packed; attention crosses them; a position counts if its next 4 tokens are real",
            "samples": self.config.samples,
            "sequences": self.sequences,
            "positions": self._positions,
            "interval": f"{self.config.confidence:.0%} bootstrap over sequences",
            "resamples": self.config.bootstrap_resamples,
        }


def _train_frequencies(dataset_uri: str) -> Tensor:
    train = open_dataset(dataset_uri, "train")
    rows = train.rows(np.arange(min(train.num_sequences, _FREQUENCY_SEQUENCES)))
    return frequencies(torch.from_numpy(rows), train.vocab_size, train.pad_id)


def _write_samples(config: EvaluationConfig, generator: TextGenerator, seed: int, stage: str) -> list[dict[str, str]]:
    report(stage, note="writing text")
    texts = generator.generate(
        config.prompts,
        max_new_tokens=config.prompt_tokens,
        sampling=Sampling(config.temperature, config.temperature_samples),
        seed=seed,
    )
    return [{"prompt": prompt, "text": text} for prompt, text in zip(config.prompts, texts, strict=True)]


def _require_same_tokenizer(model: Artifact, dataset: TokenDataset | Mixture) -> None:
    if model.entry("tokenizer.json").sha256 != dataset.tokenizer_sha256:
        raise ArtifactError(f"{model.uri}: was trained with another tokenizer than that of the dataset {dataset.uri}")


def _curve(artifact: Artifact) -> Curve:
    return [json.loads(line) for line in artifact.read("curves.jsonl").splitlines()]


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    metrics = {name: results[name] for name in ("autoencoder_accuracy",) if name in results}
    score = results["brierlm"]
    metrics |= {"brierlm": score["value"], "brierlm_low": score["low"], "brierlm_high": score["high"]}
    metrics |= {f"brier_{n}": estimate["value"] for n, estimate in results["brier"].items()}
    return metrics | {f"brierlm_{name}": ref["brierlm"]["value"] for name, ref in results["references"].items()}
