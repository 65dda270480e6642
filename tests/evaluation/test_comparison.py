"""Which of several models is better, on made-up documents whose truth is known."""

import numpy as np
import pytest

from benchmarks.resampling import USUAL, Pair, drawn_pair, true_brierlm
from calm_core.errors import CalmError
from calm_core.evaluation.brier import brierlm
from calm_core.evaluation.comparison import compare, compare_all
from calm_core.evaluation.documents import DocumentScores
from calm_core.store.facts import Difference

TRIALS = 200


def compared(first: DocumentScores, second: DocumentScores, seed: int = 0) -> Difference:
    return compare(first, second, resamples=400, confidence=0.95, seed=seed)


def pairs(documents: int, skills: tuple[float, float]) -> list[Pair]:
    return [drawn_pair(np.random.default_rng(seed), USUAL, documents, skills, own=0.3) for seed in range(TRIALS)]


def held(found: list[Difference], truth: float) -> int:
    return sum(each.brierlm.low <= truth <= each.brierlm.high for each in found)  # type: ignore[operator]  # they have


def test_the_interval_holds_the_true_difference_also_with_ten_unequal_documents() -> None:
    """95 % are 190 of 200; fewer than 180 are 3 deviations off. Percentiles that know nothing of how few documents
    there are hold it in 168, and whoever draws positions in 129."""
    truth = true_brierlm(USUAL, 1.0) - true_brierlm(USUAL, 0.9)
    drawn = pairs(10, (1.0, 0.9))
    assert held([compared(*pair.by_document()) for pair in drawn], truth) >= 180
    assert held([compared(*pair.by_position()) for pair in drawn], truth) < 140


def test_equal_models_are_told_apart_as_often_as_the_level_says() -> None:
    """5 % are 10 of 200; more than 20 are 3 deviations off. Whoever exchanges positions tells 100 apart."""
    drawn = pairs(20, (1.0, 1.0))
    assert sum(compared(*pair.by_document()).p_value <= 0.05 for pair in drawn) <= 20
    assert sum(compared(*pair.by_position()).p_value <= 0.05 for pair in drawn) > 60


def test_a_clear_difference_is_found_and_where_it_lies() -> None:
    """300 documents, and a first model that hits a fifth less often: its every Brier-n is lower, and the interval ends
    below zero."""
    first, second = drawn_pair(np.random.default_rng(0), USUAL, 300, (0.8, 1.0), own=0.0).by_document()
    found = compared(first, second)
    assert found.brierlm.value == pytest.approx(brierlm(first.mean_T) - brierlm(second.mean_T))
    assert found.brierlm.value < 0 and found.brierlm.high is not None and found.brierlm.high < 0
    assert list(found.brier) == ["1", "2", "3", "4"]
    for n, (one, other) in enumerate(zip(first.mean_T, second.mean_T, strict=True), start=1):
        assert found.brier[str(n)].value == pytest.approx(one - other)
        assert found.brier[str(n)].p_value == 1 / 401  # the least that there is
    assert found.p_value == found.brierlm.p_value == 1 / 401
    assert (found.documents, found.positions) == (300, first.positions)


def test_the_other_way_round_all_signs_change() -> None:
    first, second = drawn_pair(np.random.default_rng(1), USUAL, 12, (1.0, 0.9), own=0.3).by_document()
    there, back = compared(first, second), compared(second, first)
    for one, other in [(there.brierlm, back.brierlm), *zip(there.brier.values(), back.brier.values(), strict=True)]:
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))  # type: ignore[operator]
        assert one.p_value == other.p_value


def test_equal_inputs_give_equal_numbers_and_another_seed_others() -> None:
    first, second = drawn_pair(np.random.default_rng(1), USUAL, 12, (1.0, 0.9), own=0.3).by_document()
    assert compared(first, second) == compared(first, second) != compared(first, second, seed=1)


def test_a_model_does_not_differ_from_itself() -> None:
    scores, _ = drawn_pair(np.random.default_rng(1), USUAL, 12, (1.0, 0.9), own=0.3).by_document()
    found = compared(scores, scores)
    for each in (found.brierlm, *found.brier.values()):
        assert (each.value, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def scores_of(*rows: tuple[float, float, float, float], counts: tuple[float, ...] = ()) -> DocumentScores:
    return DocumentScores(np.arange(len(rows)), np.array(counts or [1.0] * len(rows)), np.array(rows))


def test_a_brier_n_below_zero_counts_as_zero_in_brierlm_alone() -> None:
    """Both models' Brier-4 is below zero on every document, so both have BrierLM 0; the terms still tell them apart."""
    good, bad = scores_of(*[(0.9, 0.8, 0.7, -0.1)] * 9), scores_of(*[(0.1, 0.1, 0.1, -0.2)] * 9)
    found = compared(good, bad)
    assert (found.brierlm.value, found.brierlm.low, found.brierlm.high, found.p_value) == (0, 0, 0, 1)
    assert found.brier["1"].value == pytest.approx(0.8) and found.brier["1"].p_value < 0.05
    assert found.brier["4"].value == pytest.approx(0.1) and found.brier["4"].p_value < 0.05


def test_of_one_document_nothing_can_be_concluded() -> None:
    found = compared(scores_of((0.9, 0.8, 0.7, 0.6)), scores_of((0.1, 0.1, 0.1, 0.1)))
    assert found.brierlm.low is None and found.p_value == 1


def test_several_comparisons_are_corrected_and_a_single_one_is_not() -> None:
    base, better = drawn_pair(np.random.default_rng(1), USUAL, 40, (0.9, 1.0), own=0.1).by_document()
    _, same = drawn_pair(np.random.default_rng(1), USUAL, 40, (0.9, 0.9), own=0.0).by_document()
    settings = {"resamples": 400, "confidence": 0.95, "seed": 0}
    [alone] = compare_all(base, [better], **settings)  # type: ignore[arg-type]
    assert alone == compared(better, base)
    assert alone.brierlm.corrected_p_value is None and alone.brierlm.deciding_p_value == alone.p_value
    first, second = compare_all(base, [better, same], **settings)  # type: ignore[arg-type]
    assert (first.brierlm.value, first.p_value) == (alone.brierlm.value, alone.p_value)
    for one, other in [(first.brierlm, second.brierlm), (first.brier["2"], second.brier["2"])]:
        less, more = sorted([one, other], key=lambda each: each.p_value)
        assert less.deciding_p_value == less.corrected_p_value == min(2 * less.p_value, 1)
        assert more.corrected_p_value == max(more.p_value, less.corrected_p_value)


def test_scores_of_different_documents_are_refused() -> None:
    two = scores_of((0.1, 0.1, 0.1, 0.1), (0.2, 0.2, 0.2, 0.2), counts=(2, 3))
    with pytest.raises(CalmError, match="2 documents cannot be compared with scores of 1; evaluate both"):
        compared(two, scores_of((0.1, 0.1, 0.1, 0.1)))
    with pytest.raises(CalmError, match="document 1 and 0 others were not scored alike in both"):
        compared(two, scores_of((0.1, 0.1, 0.1, 0.1), (0.2, 0.2, 0.2, 0.2), counts=(2, 4)))
    with pytest.raises(CalmError, match="document 0 and 1 others were not scored alike in both"):
        compared(two, DocumentScores(np.array([4, 5]), two.counts_D, two.sums_DT))
