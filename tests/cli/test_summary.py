"""The lines of the final table."""

from calm_cli.summary import data_lines, interval, score_lines


def test_rejected_documents_are_shown_by_reason_with_examples() -> None:
    results = {
        "documents_in": 10,
        "rejected": {"broken JSON": 2, "empty": 1, "missing field": 0},
        "duplicates": 1,
        "near_duplicates": 0,
        "splits": {"train": {"documents": 5, "tokens": 1200}, "validation": {"documents": 1, "tokens": 90}},
    }
    assert list(data_lines(results, ["a.jsonl:3: broken JSON", "a.jsonl:9: empty"])) == [
        ("documents", "10 read: 5 train, 1 validation"),
        ("rejected", "3 (2 broken JSON, 1 empty)"),
        ("", "a.jsonl:3: broken JSON"),
        ("", "a.jsonl:9: empty"),
        ("duplicates dropped", "1"),
        ("tokens", "1,200 train, 90 validation"),
    ]
    assert ("duplicates dropped", "1 and 2 near-duplicates") in data_lines(results | {"near_duplicates": 2}, [])


def test_scores_stand_beside_their_intervals_and_references() -> None:
    score = {"value": 0.12, "low": 0.11, "high": 0.13}
    results = {
        "autoencoder_accuracy": 0.9976,
        "brier": {"1": {"value": -0.001, "low": -0.002, "high": 0.0}},
        "brierlm": score,
        "references": {"untrained": {"brierlm": score}},
    }
    assert list(score_lines(results)) == [
        ("autoencoder token accuracy", "99.76%"),
        ("Brier-1", "-0.0010  [-0.0020, 0.0000]"),
        ("BrierLM", interval(score)),
        ("BrierLM, untrained model", interval(score)),
    ]
