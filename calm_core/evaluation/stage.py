"""The evaluation stage: autoencoder accuracy, BrierLM with intervals and references, and texts; an artifact itself."""

import json
import time
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from calm_core.config import EvaluationConfig
from calm_core.data.reading.dataset import Dataset, open_dataset, require_whole_chunks
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import ArtifactError
from calm_core.evaluation.brier import frequencies
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.evaluator import Evaluator
from calm_core.evaluation.prompts import beginnings
from calm_core.evaluation.report import render_report
from calm_core.evaluation.samplers import UnigramSampler
from calm_core.evaluation.scored import SCORED, Scored
from calm_core.generation.text import Sampling
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import (
    CalmFacts,
    EvaluationFacts,
    ModelFacts,
    References,
    TextSample,
)
from calm_core.telemetry.stage import Stage
from calm_core.weights.lineage import require_autoencoder

_FREQUENCY_SEQUENCES = 4096  # training sequences that the unigram reference counts


def stage_name(kind: str) -> str:
    """The stage that scores a kind of model."""
    return "evaluate" if kind == "calm" else f"evaluate-{kind}"


def evaluate(
    config: EvaluationConfig,
    dataset_uri: str,
    model_uri: str,
    output_uri: str,
    *,
    seed: int,
    autoencoder_uri: str = "",
    overwrite: bool = False,
) -> Artifact[EvaluationFacts]:
    """Score a language model on held-out text, and let it write.

    Args:
        config: The protocol.
        dataset_uri: A `dataset` artifact.
        model_uri: An artifact of a kind in `SCORED`: `calm` or `transformer`.
        output_uri: Where the `evaluation` artifact is written: evaluation.json, documents.parquet and
            report.html; its facts hold the numbers.
        seed: Of all noise.
        autoencoder_uri: The autoencoder of a CALM model; unset, where it lay when the model was trained.
        overwrite: Whether another evaluation that lies there is replaced (see `ArtifactWriter`).

    Raises:
        CalmError: An input is unusable, or the artifacts do not belong together.
    """
    settings = config.model_dump(mode="json") | {"seed": seed}
    artifact = Artifact(model_uri, *SCORED)
    with Stage(stage_name(artifact.facts.kind), settings) as stage:
        dataset = check_inputs(dataset_uri, model_uri, autoencoder_uri)
        interval = config.interval(_chunk_size(artifact.facts), dataset.sequence_length)
        known = {artifact.facts.kind: artifact.digest, "dataset": dataset.digest}
        ArtifactWriter(output_uri, EvaluationFacts, settings, known, overwrite=overwrite).check()
        stage.begin()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        scored = SCORED[type(artifact.facts)](artifact, autoencoder_uri, device)
        evaluator = Evaluator(config, dataset, interval, scored.chunk_size, seed, device, stage)
        evaluator.require_positions()
        facts, documents = _measure(evaluator, scored, dataset_uri)

        parents = scored.parents | {"dataset": dataset.digest}
        html = render_report(facts, scored.curves, settings, scored.settings, parents)
        with ArtifactWriter(output_uri, EvaluationFacts, settings, parents, overwrite=overwrite) as writer:
            writer.write("evaluation.json", json.dumps(facts.part("results"), indent=1, sort_keys=True).encode())
            documents.write(writer)
            writer.write("report.html", html.encode())
            writer.facts = facts
        stage.run.log_metrics(_metrics(facts))
        stage.run.log_text(html, "report.html")
        evaluation = Artifact(output_uri, EvaluationFacts)
        score = facts.brierlm
        stage.finish(evaluation, f"BrierLM {score.value:.2f} {score.interval()}")
    return evaluation


def check_inputs(dataset_uri: str, model_uri: str, autoencoder_uri: str = "") -> Dataset:
    """Refuse inputs that are missing or do not belong together, before a model is loaded.

    Args:
        dataset_uri, model_uri, autoencoder_uri: As of `evaluate`.

    Returns:
        The held-out split.

    Raises:
        CalmError: They are unusable.
    """
    model = Artifact(model_uri, *SCORED)
    require_autoencoder(model, autoencoder_uri)
    dataset = open_dataset(dataset_uri, "validation")
    if model.entry(TOKENIZER_NAME).sha256 != dataset.tokenizer_sha256:
        raise ArtifactError(f"{model.uri}: was trained with another tokenizer than that of the dataset {dataset.uri}")
    require_whole_chunks(dataset, _chunk_size(model.facts))
    return dataset


def _chunk_size(facts: ModelFacts) -> int:
    return facts.chunk_size if isinstance(facts, CalmFacts) else 1


def _measure(evaluator: Evaluator, scored: Scored, dataset_uri: str) -> tuple[EvaluationFacts, DocumentScores]:
    autoencoder = scored.autoencoder
    accuracy = None if autoencoder is None else evaluator.autoencoder_accuracy(autoencoder)
    started = time.monotonic()
    documents = evaluator.score(scored.trained(evaluator.interval), "BrierLM")
    score_seconds = time.monotonic() - started
    references = _references(evaluator, scored, dataset_uri)
    started = time.monotonic()
    samples = _write_samples(evaluator, scored)
    tokens = evaluator.config.prompt_tokens * len(samples)
    facts = EvaluationFacts(
        model=scored.label,
        autoencoder_accuracy=accuracy,
        **dict(evaluator.scores(documents)),
        protocol=evaluator.protocol(documents),
        references=references,
        samples=samples,
        evaluated=datetime.now(UTC).isoformat(timespec="seconds"),
        score_seconds=score_seconds,
        generation_tokens_per_second=tokens / max(time.monotonic() - started, 1e-9),
    )
    return facts, documents


def _references(evaluator: Evaluator, scored: Scored, dataset_uri: str) -> References:
    frequency = _train_frequencies(dataset_uri).to(evaluator.device)
    untrained = scored.untrained(evaluator.interval, evaluator.seed)
    return References(
        untrained=evaluator.scores(evaluator.score(untrained, "untrained reference")),
        unigram=evaluator.scores(evaluator.score(UnigramSampler(frequency), "unigram reference")),
    )


def _train_frequencies(dataset_uri: str) -> Tensor:
    counted = open_dataset(dataset_uri, "train")
    if not counted.num_sequences:  # a set that is held out whole
        counted = open_dataset(dataset_uri, "validation")
    rows = counted.rows(np.arange(min(counted.num_sequences, _FREQUENCY_SEQUENCES)))
    return frequencies(torch.from_numpy(rows), counted.vocab_size, counted.pad_id)


def _write_samples(evaluator: Evaluator, scored: Scored) -> list[TextSample]:
    config = evaluator.config
    prompts = beginnings(evaluator.dataset) if config.prompts is None else config.prompts
    if not prompts:
        return []
    evaluator.stage.report(note="writing text")
    texts = scored.generator.generate(
        prompts,
        max_new_tokens=config.prompt_tokens,
        sampling=Sampling(config.temperature, config.temperature_samples),
        seed=[evaluator.seed + i for i in range(len(prompts))],  # the same noise would lead all to the same words
    )
    return [TextSample(prompt=prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]


def _metrics(facts: EvaluationFacts) -> dict[str, float]:
    score = facts.brierlm
    metrics = {"brierlm": score.value}
    if score.low is not None and score.high is not None:
        metrics |= {"brierlm_low": score.low, "brierlm_high": score.high}
    if facts.autoencoder_accuracy is not None:
        metrics["autoencoder_accuracy"] = facts.autoencoder_accuracy
    metrics |= {f"brier_{n}": term.value for n, term in facts.brier.items()}
    for name in References.model_fields:
        metrics[f"brierlm_{name}"] = getattr(facts.references, name).brierlm.value
    return metrics
