"""The evaluation stage: all that is measured of a language model, on held-out text; an artifact itself."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from calm_core.config import EvaluationConfig
from calm_core.config.base import parse_section
from calm_core.data.reading.dataset import Dataset, open_dataset, require_whole_chunks
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import ArtifactError, CalmError, ConfigError
from calm_core.evaluation import diversity, speed
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.evaluator import Evaluator
from calm_core.evaluation.prompts import beginnings
from calm_core.evaluation.report import render_report
from calm_core.evaluation.samplers import UnigramSampler
from calm_core.evaluation.scored import SCORED, Scored
from calm_core.evaluation.training_text import TrainingText
from calm_core.evaluation.unfinished import unfinished
from calm_core.generation.sampling import Sampling
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.code_version import code_version
from calm_core.store.facts import (
    CalmFacts,
    EvaluationFacts,
    ModelFacts,
    References,
    SpeedFacts,
    WrittenTexts,
)
from calm_core.store.protocol import differences
from calm_core.telemetry.stage import Stage
from calm_core.weights.lineage import require_autoencoder


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
    checkpoint_root: str = "",
    overwrite: bool = False,
) -> Artifact[EvaluationFacts]:
    """Score a language model on held-out text, and let it write.

    Args:
        config: The protocol.
        dataset_uri: A `dataset` artifact.
        model_uri: An artifact of a kind in `SCORED`: `calm` or `transformer`.
        output_uri: Where the `evaluation` artifact is written: evaluation.json, documents.parquet and report.html; its
            facts hold the numbers.
        seed: Of all noise.
        autoencoder_uri: The autoencoder of a CALM model; unset, where it lay when the model was trained.
        checkpoint_root: Folder where an interrupted evaluation finds what it has measured; empty: it begins anew.
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
        device = _device()
        identity, maker = {"config": settings, "parents": known}, (code_version(), device.type)
        with unfinished(identity, maker, checkpoint_root, output_uri, lambda line: stage.report(note=line)) as pieces:
            stage.begin()
            scored = SCORED[type(artifact.facts)](artifact, autoencoder_uri, device)
            evaluator = Evaluator(config, dataset, interval, scored.chunk_size, seed, device, stage, pieces)
            evaluator.require_positions()
            facts, documents = _measure(evaluator, scored, dataset_uri)

            parents = scored.parents | {"dataset": dataset.digest}
            html = render_report(facts, scored.curves, settings, scored.settings, parents)
            with ArtifactWriter(output_uri, EvaluationFacts, settings, parents, overwrite=overwrite) as writer:
                writer.write("evaluation.json", json.dumps(facts.part("results"), indent=1, sort_keys=True).encode())
                documents.write(writer)
                writer.write("report.html", html.encode())
                writer.facts = facts
            pieces.remove()
        stage.run.log_metrics(facts.metrics())
        stage.run.log_text(html, "report.html")
        evaluation = Artifact(output_uri, EvaluationFacts)
        score = facts.brierlm
        stage.finish(evaluation, f"BrierLM {score.value:.2f} {score.interval()}")
    return evaluation


def score_documents(
    model_uri: str, dataset_uri: str, like: Artifact[EvaluationFacts], stage: Stage, *, autoencoder_uri: str = ""
) -> DocumentScores:
    """Score another model by the protocol of an evaluation, and nothing but that.

    Args:
        model_uri, autoencoder_uri: As of `evaluate`.
        dataset_uri: The dataset of the evaluation.
        like: The evaluation of a model that this one is compared with.
        stage: To which progress is reported.

    Raises:
        CalmError: An input is unusable, the settings are not understood, or no score by this protocol can be had.
    """
    model = Artifact(model_uri, *SCORED)
    dataset = check_inputs(dataset_uri, model_uri, autoencoder_uri)
    if dataset.digest != like.facts.protocol.get("dataset"):
        raise CalmError(f"{dataset_uri}: is not the dataset of the evaluation {like.uri}; name that one")
    config, seed = _settings_of(like)
    interval = config.interval(_chunk_size(model.facts), dataset.sequence_length)
    scored = SCORED[type(model.facts)](model, autoencoder_uri, _device())
    evaluator = Evaluator(config, dataset, interval, scored.chunk_size, seed, _device(), stage)
    documents = evaluator.score(scored.trained(interval), "BrierLM")
    if found := differences(like.facts.protocol, evaluator.protocol(documents)):
        told = "; ".join(f"{name} {theirs} against {ours}" for name, (theirs, ours) in found.items())
        raise CalmError(f"{model_uri}: cannot be scored by the protocol of {like.uri}: {told}; evaluate both alike")
    return documents


def _settings_of(evaluation: Artifact[EvaluationFacts]) -> tuple[EvaluationConfig, int]:
    """The settings and the seed of an evaluation.

    Raises:
        ArtifactError: They are not understood.
    """
    settings: dict[str, Any] = dict(evaluation.manifest.config)
    seed = settings.pop("seed", None)
    try:
        if isinstance(seed, int):
            return parse_section(EvaluationConfig, settings), seed
        reason = "it has no seed"
    except ConfigError as error:
        reason = f"{error!s:.500}"
    raise ArtifactError(f"{evaluation.uri}: its settings are not understood ({reason}); evaluate again")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    evaluator.stage.report(note="reading training text")
    text = TrainingText.read(dataset_uri)
    autoencoder = scored.autoencoder
    fidelity = None if autoencoder is None else evaluator.autoencoder(autoencoder, text)
    studied = evaluator.study(scored.trained(evaluator.interval), "BrierLM", text, autoencoder)
    references = _references(evaluator, scored, text)
    prompts = _prompts(evaluator)
    written = _written(evaluator, scored, prompts)
    measured = _speed(evaluator, scored, prompts)
    shown = [one.texts[: len(prompts)] for one in written if one.temperature == evaluator.config.temperature]
    facts = EvaluationFacts(
        model=scored.label,
        autoencoder_accuracy=None if fidelity is None else fidelity.sampled.tokens,
        **dict(evaluator.scores(studied.documents)),
        protocol=evaluator.protocol(studied.documents),
        references=references,
        samples=shown[0] if shown else [],
        autoencoder=fidelity,
        language_model=studied.quality,
        written=written,
        inference_flops_per_token=scored.flops_per_token(evaluator.dataset.sequence_length),
        speed=measured,
        costs=scored.costs,
        evaluated=datetime.now(UTC).isoformat(timespec="seconds"),
        score_seconds=studied.seconds,
        generation_tokens_per_second=measured.tokens_per_second if measured else 0.0,
    )
    return facts, studied.documents


def _references(evaluator: Evaluator, scored: Scored, text: TrainingText) -> References:
    untrained = scored.untrained(evaluator.interval, evaluator.seed)
    unigram = UnigramSampler(text.frequencies.to(evaluator.device))
    return References(
        untrained=evaluator.scores(evaluator.score(untrained, "untrained reference")),
        unigram=evaluator.scores(evaluator.score(unigram, "unigram reference")),
    )


def _prompts(evaluator: Evaluator) -> tuple[str, ...]:
    prompts = evaluator.config.prompts
    return beginnings(evaluator.dataset) if prompts is None else prompts


def _written(evaluator: Evaluator, scored: Scored, prompts: tuple[str, ...]) -> list[WrittenTexts]:
    """What the model writes at each temperature; the first text of each prompt, then the second, and so on."""
    config = evaluator.config
    if not prompts:
        return []
    repeated = prompts * config.texts_per_prompt

    def write(temperature: float) -> WrittenTexts:
        evaluator.stage.report(note=f"writing text at temperature {temperature:g}")
        sampling = _sampling(config, scored, temperature)
        written = scored.generator.write(
            repeated,
            max_new_tokens=config.prompt_tokens,
            sampling=sampling,
            seed=[evaluator.seed + i for i in range(len(repeated))],  # the same noise would lead all to the same words
        )
        return diversity.measure(repeated, written, temperature, scored.generator.model.sampler_name(sampling))

    return [
        evaluator.unfinished.record(f"texts-{temperature}", WrittenTexts, partial(write, temperature))
        for temperature in sorted({config.temperature, *config.temperatures})
    ]


def _sampling(config: EvaluationConfig, scored: Scored, temperature: float) -> Sampling:
    if scored.autoencoder is None:  # a Transformer needs no sampler
        return Sampling(temperature)
    return Sampling(temperature, config.temperature_samples, sampler=config.sampler)


def _speed(evaluator: Evaluator, scored: Scored, prompts: tuple[str, ...]) -> SpeedFacts | None:
    """How fast the model writes the texts that are shown; of no prompt, unknown."""
    config = evaluator.config
    if not prompts:
        return None
    evaluator.stage.report(note="measuring how fast it writes")
    return evaluator.unfinished.record(
        "speed",
        SpeedFacts,
        lambda: speed.measure(
            scored.generator,
            prompts,
            max_new_tokens=config.prompt_tokens,
            sampling=_sampling(config, scored, config.temperature),
            seed=evaluator.seed,
        ),
    )
