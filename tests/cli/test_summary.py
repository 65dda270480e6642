"""The lines of the final table."""

from calm_cli.summary import data_lines, interval, score_lines
from calm_core.store.facts import (
    LENGTH_BINS,
    BrierScores,
    DatasetFacts,
    EvaluationFacts,
    References,
    Score,
    Shard,
    SplitCounts,
)


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


def test_scores_stand_beside_their_intervals_and_references() -> None:
    score, reference = Score(value=12.0, low=11.0, high=13.0), Score(value=1.0, low=0.0, high=2.0)
    references = BrierScores(brierlm=reference, brier={"1": Score(value=0.01, low=0.0, high=0.02)})
    facts = EvaluationFacts(
        model="CALM",
        autoencoder_accuracy=0.9976,
        brier={"1": Score(value=0.12, low=0.11, high=0.13)},
        brierlm=score,
        protocol={},
        references=References(untrained=references, unigram=references),
        samples=[],
    )
    assert list(score_lines(facts)) == [
        ("autoencoder token accuracy", "99.76%"),
        ("Brier-1", "0.1200  [0.1100, 0.1300]"),
        ("BrierLM", interval(score)),
        ("BrierLM, untrained model", interval(reference)),
        ("BrierLM, unigram model", interval(reference)),
    ]
