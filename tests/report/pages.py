"""What a page tells of a whole run, made up."""

from pathlib import Path

from calm_core.evaluation.report import WholeRun, render_report
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import (
    LENGTH_BINS,
    Accuracy,
    AutoencoderFacts,
    AutoencoderQuality,
    BrierScores,
    Calibration,
    CalibrationBin,
    CalmFacts,
    Check,
    DatasetFacts,
    Difference,
    EvaluationFacts,
    FrequencyAccuracy,
    KnownText,
    LanguageModelQuality,
    ModelFacts,
    NoiseAccuracy,
    Perplexity,
    PlaceScores,
    References,
    RegistrationFacts,
    SampleDistances,
    Score,
    ScoreDifference,
    Shard,
    SourceFile,
    SpeedFacts,
    SplitCounts,
    StageTime,
    TextSample,
    TrainingCost,
    WrittenTexts,
)
from calm_core.weights.curves import CURVES_NAME

ARABIC, EMOJI = "مناخ البلاد معتدل مع", "🌍 👩‍👩‍👧 日本語"


def scores(percent: float) -> BrierScores:
    term = Score(value=percent / 100, low=percent / 110, high=percent / 90)
    return BrierScores(brierlm=term.times(100), brier=dict.fromkeys("1234", term))


def written(temperature: float, prompts: list[str]) -> WrittenTexts:
    texts = [TextSample(prompt=prompt, text=f"{prompt[::-1]} " * 9) for prompt in prompts]
    shares = {"1": 0.4, "2": 0.7 + 0.1 * temperature, "3": 0.9, "4": 1.0}
    return WrittenTexts(temperature=temperature, distinct=shares, repetition=0.1, self_bleu=40.0, texts=texts)


def evaluation(percent: float = 18.4, texts: int = 1) -> EvaluationFacts:
    places = [PlaceScores(begin=16 * i, end=16 * (i + 1), positions=9, scores=scores(9.0 + i)) for i in range(6)]
    prompts = [f"{prompt} {number}" for number in range(texts) for prompt in ("The climate", ARABIC, EMOJI, "w" * 200)]
    whole = Accuracy(tokens=0.999, chunks=0.99)
    return EvaluationFacts(
        model="CALM, K = 4, energy head",
        autoencoder_accuracy=0.9988,
        protocol={"dataset": "d" * 64, "sequences": 222, "positions": 28040, "interval": "95% bootstrap"},
        references=References(untrained=scores(0.0), unigram=scores(1.0)),
        samples=[],
        autoencoder=AutoencoderQuality(
            mean=whole,
            sampled=whole,
            under_noise=[NoiseAccuracy(scale=scale, tokens=1 - scale / 2, chunks=1 - scale) for scale in (0, 0.5, 1)],
            latent_size=64,
            active_dimensions=61,
            latent_std={"0.5": 0.29},
            by_frequency=[FrequencyAccuracy(least=10**i, most=10**i * 9, tokens=9, accuracy=0.9) for i in range(6)],
        ),
        language_model=LanguageModelQuality(
            by_document_position=places,
            by_context_length=places[:3],
            known_4grams=KnownText(sampled=0.41, true=0.63),
            calibration=Calibration(
                bins=[CalibrationBin(begin=0, end=0.5, positions=9, confidence=0.3, accuracy=0.2)], expected_error=0.1
            ),
            distances=SampleDistances(to_target=8.1, between_samples=7.7, between_targets=2.3),
            perplexity=Perplexity(value=41.23, low=38.0, high=45.0, tokens=4, samples=8),
        ),
        written=[written(temperature, prompts) for temperature in (0.3, 0.7, 1.0)],
        speed=SpeedFacts(tokens_per_second=412.0, first_chunk_seconds=0.03, memory_bytes=2**30, device="CPU"),
        costs={
            "autoencoder": TrainingCost(flops=2.1e12, tokens=10**6, seconds=130.0),
            "CALM": TrainingCost(flops=3.3e13, tokens=10**6, seconds=3800.0, energy_joules=7200.0),
        },
        **dict(scores(percent)),
    )


def dataset() -> DatasetFacts:
    def split(name: str, documents: int) -> SplitCounts:
        lengths = [0] * 5 + [documents] + [0] * (LENGTH_BINS - 6)
        return SplitCounts(
            documents=documents, sequences=2, tokens=60, padding=4, text_bytes=99, document_lengths=lengths,
            shards=[Shard(path=f"{name}/0.parquet", rows=2)],
        )  # fmt: skip

    return DatasetFacts(
        vocab_size=300, pad_id=0, eos_id=1, engine="tiktoken", sequence_length=32, document_alignment=4,
        rows_per_group=2, partitions=1, documents_in=60, documents_out=50, duplicates=5, near_duplicates=2,
        rejected={"broken <JSON>": 3}, normalized=0, text_bytes=198,
        splits={"train": split("train", 40), "validation": split("validation", 10)},
        sources=[SourceFile(uri=f"s3://me:word@bucket/{'long' * 30}.jsonl", size=9, digest="ab" * 32)],
        reject_examples=["b.jsonl:36: broken JSON"],
    )  # fmt: skip


def registration(*, promoted: bool = True) -> RegistrationFacts:
    told = "1.32 [0.41, 2.20], p = 0.004"
    change = ScoreDifference(value=1.32, low=0.41, high=2.2, p_value=0.004)
    return RegistrationFacts(
        model_name="calm", version="4", alias="champion", model_uri="models:/calm/4", promoted=promoted,
        reason=f"BrierLM is higher by {told}", champion="3",
        checks=[Check(rule="significance", passed=promoted, told=f"is better: {told}")],
        comparison=Difference(
            brierlm=change, brier=dict.fromkeys("1234", change), documents=16, positions=99, resamples=1000,
            confidence=0.95,
        ),
    )  # fmt: skip


def whole_run(*, promoted: bool = True) -> WholeRun:
    shape = {
        "vocab_size": 300,
        "pad_id": 0,
        "eos_id": 1,
        "trained_tokens": 10**6,
        "seconds": 130.0,
        "validation": {"loss": 1.5},
    }
    return WholeRun(
        dataset=dataset(),
        models={
            "autoencoder": AutoencoderFacts.model_validate({**shape, "parameters": 1_009_280}),
            "CALM": CalmFacts.model_validate({**shape, "parameters": 3_851_072, "chunk_size": 4, "latent_size": 64}),
        },
        registration=registration(promoted=promoted),
        champion=evaluation(17.1),
        baseline=evaluation(16.2),
        stages=[
            StageTime(stage="prepare", seconds=21.0),
            StageTime(stage="train-autoencoder", seconds=130.0, cached=True),
            StageTime(stage="train-calm", seconds=3800.0),
            StageTime(stage="evaluate"),
        ],
        command="calm run --source 's3://me:word@bucket/*'",
        code_version="library-0123",
        written="2026-11-26 03:15 UTC",
    )


def page(facts: EvaluationFacts | None = None, run: WholeRun | None = None, steps: int = 5000) -> str:
    curve = [{"step": step, "loss": 1 / (step + 1), "validation_loss": 0.5} for step in range(steps)]
    models = {"CALM": {"steps": 554, "model": {"head": {"kind": "flow"}}}}
    parents = {"calm": "c" * 64, "dataset": "d" * 64}
    return render_report(
        facts or evaluation(),
        {("CALM: loss", "loss"): curve},
        {"temperature": 0.5},
        models,
        parents,
        run or whole_run(),
    )


def write_run(folder: Path, seed: int = 0) -> dict[str, str]:
    """The artifacts of a run that is made up, by kind; returns their URIs."""
    run, uris, digests = whole_run(), {}, {}
    parents = {
        "dataset": (),
        "autoencoder": ("dataset",),
        "calm": ("dataset", "autoencoder"),
        "evaluation": ("dataset", "autoencoder", "calm"),
        "registration": ("calm", "evaluation"),
    }
    facts = [run.dataset, *run.models.values(), evaluation(), registration().model_copy(update={"champion": ""})]
    for each in facts:
        assert each is not None
        uri = str(folder / each.kind)
        with ArtifactWriter(
            uri, type(each), {"seed": seed}, {kind: digests[kind] for kind in parents[each.kind]}
        ) as writer:
            for path in each.paths:
                writer.write(path, b"")
            if isinstance(each, ModelFacts):
                writer.write(CURVES_NAME, b'{"step": 1, "loss": 2}\n{"step": 2, "loss": 1, "validation_loss": 1.5}\n')
            writer.facts = each
        uris[each.kind], digests[each.kind] = uri, Artifact.of_any_kind(uri).digest
    return uris
