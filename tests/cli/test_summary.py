"""The lines of the final table."""

import io
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from calm_cli.board import Board
from calm_cli.screen import Screen
from calm_cli.summary import Baseline, Finished, aligned, data_lines, score_lines, show
from calm_core.store.artifact import Artifact
from calm_core.store.facts import (
    LENGTH_BINS,
    AutoencoderFacts,
    BrierScores,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    FileEntry,
    References,
    RegistrationFacts,
    ReportFacts,
    Score,
    Shard,
    SplitCounts,
    TextSample,
    TransformerFacts,
)
from calm_core.telemetry.progress import ProgressEvent

FactsT = TypeVar("FactsT", bound=Facts)


def split(documents: int, tokens: int) -> SplitCounts:
    return SplitCounts(
        documents=documents,
        sequences=1,
        tokens=tokens,
        padding=2048 - tokens,
        text_bytes=1,
        document_lengths=[documents, *[0] * (LENGTH_BINS - 1)],
        shards=[Shard(path=f"{documents}.parquet", rows=1)],
    )


DATASET = DatasetFacts(
    documents_in=10,
    documents_out=6,
    duplicates=1,
    near_duplicates=0,
    rejected={"broken_json": 2, "empty": 1, "missing_field": 0},
    normalized=0,
    text_bytes=2,
    vocab_size=300,
    pad_id=0,
    eos_id=1,
    engine="tiktoken",
    sequence_length=2048,
    document_alignment=8,
    rows_per_group=1,
    partitions=1,
    splits={"train": split(5, 1200), "validation": split(1, 90)},
    reject_examples=["a.jsonl:3: broken_json", "a.jsonl:9: empty"],
)


def test_rejected_documents_are_shown_by_reason_with_examples() -> None:
    assert list(data_lines(DATASET)) == [
        ("documents", "10 read: 5 train, 1 validation"),
        ("rejected", "3 (2 broken_json, 1 empty)"),
        ("", "a.jsonl:3: broken_json"),
        ("", "a.jsonl:9: empty"),
        ("duplicates dropped", "1"),
        ("tokens", "1,200 train, 90 validation"),
    ]
    near = DATASET.model_copy(update={"near_duplicates": 2})
    assert ("duplicates dropped", "1 and 2 near-duplicates") in data_lines(near)


def evaluation(value: float, *, samples: Sequence[TextSample] = (), one_sequence: bool = False) -> EvaluationFacts:
    """Of a model whose four terms are equal, so that BrierLM is 100 times the same."""

    def score(value: float) -> Score:
        return Score(value=value) if one_sequence else Score(value=value, low=0.9 * value, high=1.1 * value)

    def scores(value: float) -> BrierScores:
        return BrierScores(brierlm=score(100 * value), brier={n: score(value) for n in "1234"})

    return EvaluationFacts(
        model="CALM",
        autoencoder_accuracy=0.9976,
        protocol={},
        references=References(untrained=scores(0), unigram=scores(0.01)),
        samples=list(samples),
        generation_tokens_per_second=200,
        **dict(scores(value)),
    )


def test_scores_are_on_one_scale_and_below_each_other() -> None:
    facts = evaluation(0.1326)
    assert score_lines(facts) == {
        "BrierLM": "13.26 [11.93, 14.59]",
        "  token frequency": " 1.00 [ 0.90,  1.10]",
        "  untrained": " 0.00 [ 0.00,  0.00]",
        **dict.fromkeys(("Brier-1", "Brier-2", "Brier-3", "Brier-4"), "13.26 [11.93, 14.59]"),
    }


def test_a_score_of_one_sequence_has_no_interval_and_one_below_zero_has_a_sign() -> None:
    assert aligned([Score(value=-1.5), Score(value=-0.001, low=-0.002, high=10)]) == [
        "-1.50 [unknown]",
        " 0.00 [0.00, 10.00]",
    ]


def model(kind: type[FactsT], parameters: int, **more: object) -> FactsT:
    told = {"vocab_size": 300, "pad_id": 0, "eos_id": 1, "parameters": parameters, "seconds": 4088.0}
    return kind.model_validate(told | {"tokens_per_second": 12345.6} | more)


def artifact(facts: FactsT) -> Artifact[FactsT]:
    return cast(Artifact[FactsT], SimpleNamespace(facts=facts, uri=f"out/{facts.kind}"))


def finished(**registration: object) -> Finished:
    about = {"model_name": "calm", "version": "2", "alias": "champion", "model_uri": "models:/calm/2"}
    page = FileEntry(path="report.html", size=1, sha256="0" * 64)
    return Finished(
        artifact(DATASET),
        artifact(model(AutoencoderFacts, 1_009_280)),
        artifact(model(CalmFacts, 3_851_072, chunk_size=4, latent_size=8)),
        artifact(evaluation(0.1326, samples=[TextSample(prompt="Notes\nWhat the cat's", text=" paws do")])),
        artifact(RegistrationFacts.model_validate(about | registration)),
        artifact(ReportFacts(headline="calm version 2 is champion", page=page)),
    )


def with_baseline(run: Finished) -> Finished:
    baseline = Baseline(artifact(model(TransformerFacts, 2_000_000)), artifact(evaluation(0.25)))
    return replace(run, baseline=baseline)


def shown(run: Finished, width: int = 80) -> list[str]:
    output, board = io.StringIO(), Board(("prepare", "train-calm"), started=0)
    board.apply(ProgressEvent(time=1, stage="train-calm", state="running"))
    board.apply(ProgressEvent(time=4088, stage="train-calm", state="finished"))
    board.succeed(4088)
    show(run, board, Screen(file=output, width=width), ["calm", "run", "--source", "*.txt"])
    return output.getvalue().splitlines()


AT_80 = """
documents           10 read: 5 train, 1 validation
rejected            3 (2 broken_json, 1 empty)
                    a.jsonl:3: broken_json
                    a.jsonl:9: empty
duplicates dropped  1
tokens              1,200 train, 90 validation

scores x 100       CALM                  Transformer           autoencoder
BrierLM            13.26 [11.93, 14.59]  25.00 [22.50, 27.50]
  token frequency   1.00 [ 0.90,  1.10]   1.00 [ 0.90,  1.10]
  untrained         0.00 [ 0.00,  0.00]   0.00 [ 0.00,  0.00]
Brier-1            13.26 [11.93, 14.59]  25.00 [22.50, 27.50]
Brier-2            13.26 [11.93, 14.59]  25.00 [22.50, 27.50]
Brier-3            13.26 [11.93, 14.59]  25.00 [22.50, 27.50]
Brier-4            13.26 [11.93, 14.59]  25.00 [22.50, 27.50]
token accuracy                                                 99.76%
parameters         3,851,072             2,000,000             1,009,280
training time      1:08:08               1:08:08               1:08:08
training tokens/s  12,346                12,346                12,346
writing tokens/s   200                   200

total time      1:08:08
from the cache  prepare

Notes
What the cat's paws do

registered: calm version 2 (models:/calm@champion)

next:
  calm generate 'What the cat'"'"'s' --temperature 0.5 --seed 1
  calm run --source '*.txt' --set calm.learning_rate=5e-4   # reruns only what depends on it
  calm runs     # all runs, and where what they made lies
  calm report   # opens the page about the newest run
  calm ui       # curves, settings, lineage

report: out/report/report.html
""".strip().splitlines()


def test_a_run_with_the_baseline_shows_both_models_side_by_side() -> None:
    assert shown(with_baseline(finished())) == AT_80


def test_without_the_baseline_there_is_one_column_less() -> None:
    lines = shown(finished())
    assert "scores x 100       CALM                  autoencoder" in lines
    assert "parameters         3,851,072             1,009,280" in lines
    assert not any("Transformer" in line for line in lines)


def test_what_went_wrong_in_training_is_shown_beside_the_scores() -> None:
    calm = model(CalmFacts, 3_851_072, chunk_size=4, latent_size=8, bad_steps=2, skipped_steps=2, loss_spikes=0)
    lines = shown(replace(finished(), calm_model=artifact(calm)))
    assert "skipped steps      2                     0" in lines
    assert not any("spikes" in line for line in lines)


def test_tables_that_are_too_wide_are_not_cut() -> None:
    """The terminal breaks such lines; in a pipe they are whole."""
    assert shown(with_baseline(finished()), width=30) == AT_80


def test_a_version_that_was_not_promoted_is_named_by_its_number() -> None:
    lines = shown(finished(promoted=False, reason="champion stays with version 1 (BrierLM 20.00 against 13.26)"))
    assert (
        "registered: calm version 2 (models:/calm/2); champion stays with version 1 (BrierLM 20.00 against 13.26)"
        in (lines)
    )
    assert any("calm generate" in line and " --model models:/calm/2 " in line for line in lines)
    renamed = finished(model_name="my model", model_uri="models:/my model/2")
    assert any("--model 'models:/my model@champion'" in line for line in shown(renamed))


@pytest.mark.parametrize(
    ("prompts", "command"),
    [
        ([], "calm generate '...' --temp"),
        ([" "], "calm generate '...' --temp"),
        (["a\x1b[2J\u202e$(rm)"], "calm generate 'a\\x1b[2J\\u202e$(rm)' --temp"),
        (["word " * 50], "calm generate 'word word word word word word word word' --temp"),
        (["a" * 100], f"calm generate {'a' * 40} --temp"),
    ],
)
def test_the_next_prompt_is_of_the_text_and_safe_to_paste(prompts: list[str], command: str) -> None:
    run = finished()
    samples = [TextSample(prompt=prompt, text="") for prompt in prompts]
    written = replace(run, evaluation_report=artifact(evaluation(0.1, samples=samples)))
    assert any(command in line for line in shown(written))


def test_of_many_texts_the_first_are_shown() -> None:
    samples = [TextSample(prompt=f"prompt {number}", text=" and text") for number in range(9)]
    lines = shown(replace(finished(), evaluation_report=artifact(evaluation(0.1, samples=samples))))
    assert "prompt 2 and text" in lines and "prompt 3 and text" not in lines
    assert "6 more texts are in the report" in lines
