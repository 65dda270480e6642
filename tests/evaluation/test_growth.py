"""The line that is drawn through scores at several budgets."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth import correlation, fitted, grouped, main
from calm_core.errors import CalmError
from calm_core.evaluation.documents import DocumentScores
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import EvaluationFacts, References
from calm_core.store.facts.evaluation import Calibration, LanguageModelQuality, Perplexity, TrainingCost

COUNTS = np.array([40.0, 60.0, 50.0, 80.0, 70.0])


def scores(terms: np.ndarray) -> DocumentScores:
    """Every document has the same Brier-1..4 in the mean."""
    return DocumentScores(np.arange(len(COUNTS)), COUNTS, COUNTS[:, None] * terms)


def test_a_straight_line_over_doublings_is_found_again() -> None:
    lines = [[scores(np.full(4, (5 + 3 * i + seed) / 100)) for seed in (0, 1)] for i in range(4)]
    points, slope = fitted([1e12, 2e12, 4e12, 8e12], lines)
    assert [point.value for point in points] == pytest.approx([5.5, 8.5, 11.5, 14.5])
    assert slope and slope.value == pytest.approx(3)
    assert slope.low is not None and slope.high is not None
    assert slope.low < 3 < slope.high  # the seeds differ by one


def test_documents_that_differ_widen_the_intervals_of_points_more_than_that_of_the_slope() -> None:
    """The same documents are drawn for all budgets, so what they share does not move the line."""
    easy = np.linspace(0.05, 0.3, len(COUNTS))[:, None]
    lines = [[DocumentScores(np.arange(5), COUNTS, COUNTS[:, None] * (easy + 0.02 * i) * np.ones(4))] for i in range(3)]
    points, slope = fitted([1e12, 2e12, 4e12], lines)
    assert slope and slope.value == pytest.approx(2)
    assert points[0].high - points[0].low > 1  # type: ignore[operator]  # both are there
    assert slope.high == pytest.approx(slope.low)


Evaluated = Callable[..., Artifact[EvaluationFacts]]


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    def evaluated(
        name: str, model: str, flops: float | None, level: float, perplexity: float = 0.0, positions: int = 300
    ) -> Artifact[EvaluationFacts]:
        found = scores(np.full(4, level / 100))
        numbers = found.scores(resamples=100, confidence=0.95, seed=0)
        quality = LanguageModelQuality(
            by_document_position=[],
            by_context_length=[],
            calibration=Calibration(bins=[], expected_error=0.0),
            perplexity=Perplexity(value=perplexity, tokens=4, samples=8),
        )
        output = str(tmp_path / name)
        with ArtifactWriter(output, EvaluationFacts, {}, {"dataset": "0" * 64}) as writer:
            found.write(writer)
            writer.facts = EvaluationFacts(
                model=model,
                **dict(numbers),
                protocol={"dataset": "0" * 64, "positions": positions},
                references=References(untrained=numbers, unigram=numbers),
                samples=[],
                language_model=quality if perplexity else None,
                costs={"transformer" if model == "T" else "calm": TrainingCost(flops=flops)},
            )
        return Artifact(output, EvaluationFacts)

    return evaluated


def test_budgets_that_whole_steps_have_moved_apart_are_one(evaluated: Evaluated) -> None:
    flops = {"a": 2.449e12, "b": 2.451e12, "c": 1.2e12, "d": 1.21e12}
    found = grouped(
        [evaluated(name, "C", number, 5) for name, number in flops.items()] + [evaluated("t", "T", 2.5e12, 5)]
    )
    assert {model: [len(seeds) for seeds in budgets.values()] for model, budgets in found.items()} == {
        "C": [2, 2],
        "T": [1],
    }
    assert [*found["C"]] == [1.2e12, 2.449e12] and [*found["T"]] == [2.449e12]


def test_a_seed_that_is_missing_or_a_model_without_flops_is_refused(evaluated: Evaluated) -> None:
    uneven = [evaluated(name, "C", flops, 5) for name, flops in {"a": 1e12, "b": 2e12, "c": 2e12}.items()]
    with pytest.raises(CalmError, match=r"^C: not as many seeds at each budget \(1 at 1e\+12, 2 at 2e\+12 FLOPs\)"):
        grouped(uneven)
    with pytest.raises(CalmError, match="does not tell the FLOPs"):
        grouped([evaluated("d", "C", None, 5)])


def test_brierlm_is_correlated_with_the_logarithm_of_perplexity(evaluated: Evaluated) -> None:
    models = [evaluated(str(i), "C", 1e12, level, math.exp(9 - level)).facts for i, level in enumerate([3, 4, 8])]
    assert correlation(models) == pytest.approx(-1)
    assert correlation(models[:2]) is None
    assert correlation([evaluated(f"{i}-without", "C", 1e12, 5).facts for i in range(3)]) is None


def test_the_command_prints_points_lines_and_draws(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        evaluated(f"{model}{flops:g}{seed}", model, flops, level + seed).uri
        for model, levels in {"C": (3, 5, 7), "T": (1, 4, 7)}.items()
        for flops, level in zip((1e12, 2e12, 4e12), levels, strict=True)
        for seed in (0, 1)
    ]
    picture = tmp_path / "growth.svg"
    monkeypatch.setattr("sys.argv", ["growth", *folders, "--picture", str(picture)])
    main()
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert first.split()[:3] == ["C", "2", "5.5"] and " 3.50 [" in first and " 7.50 [" in first and " 2.00 [" in first
    assert second.split()[:3] == ["T", "2", "4.5"] and " 1.50 [" in second and " 3.00 [" in second
    assert picture.read_text(encoding="utf-8").count("<svg") == 1


def test_scores_of_other_positions_are_one_line(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [evaluated("a", "C", 1e12, 5).uri, evaluated("b", "C", 2e12, 5, positions=150).uri]
    monkeypatch.setattr("sys.argv", ["growth", *folders])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "their protocols differ: positions 300 against 150" in capsys.readouterr().err
