"""How often intervals hold the truth, and p-values are right, on made-up models whose truth is known.

`python -m benchmarks.resampling` prints a table: coverage of 95 % intervals, how often equal models are told apart, and
how often unequal ones are.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calm_core.evaluation.brier import MAX_N, brierlm
from calm_core.evaluation.comparison import compare
from calm_core.evaluation.documents import DocumentScores, Stretches
from calm_core.evaluation.resampling import FloatArray, resampled_means, with_interval
from calm_core.store.facts import Score

_GOES_ON, _SAYS_THE_SAME, _AGREES_ON = 0.75, 0.02, 0.5
_N = np.arange(MAX_N)
_CONFIDENCE = 0.95
_WRONG_RESAMPLES = 200  # of positions, which are many: enough to see that it is wrong
_MANY = 100_000  # documents, of which nothing is corrected


@dataclass(frozen=True)
class Kind:
    """Documents of one kind.

    Attributes:
        share: Of all documents.
        positions: How many are scored of one on average; single lengths are log-normal with deviation 1.
        easy, hard: Of the beta distribution from which a document's ease is drawn.
    """

    share: float
    positions: int
    easy: float
    hard: float

    def brier_of(self, skill: float) -> FloatArray:
        """Expected Brier-1..4 of a model's positions."""
        total = self.easy + self.hard
        mean = self.easy / total
        mean_of_squares = mean * (self.easy + 1) / (total + 1)
        hits = 2 * skill * mean * _GOES_ON**_N - skill**2 * mean_of_squares * _GOES_ON ** (2 * _N)
        expected: FloatArray = (1 - _SAYS_THE_SAME) * hits - _SAYS_THE_SAME * _AGREES_ON**_N
        return expected


USUAL = (Kind(0.7, 30, 6, 16), Kind(0.3, 150, 4, 14))
"""Many short documents, and some long ones, which are harder."""
WITH_EASY_ONES = (Kind(0.67, 30, 6, 16), Kind(0.28, 150, 4, 14), Kind(0.05, 150, 9, 1))
"""One in twenty is long and nearly known by heart, as a licence is: the few of them hold much of BrierLM."""


def true_brierlm(kinds: tuple[Kind, ...], skill: float) -> float:
    """BrierLM over infinitely many documents."""
    weights = [kind.share * kind.positions for kind in kinds]
    return float(brierlm(np.average([kind.brier_of(skill) for kind in kinds], axis=0, weights=weights)))


@dataclass(frozen=True)
class Pair:
    """Two models' terms on the same held-out positions.

    Attributes:
        document_N: Number of each position's document.
        terms_NT: Brier-1..4, by model.
    """

    document_N: npt.NDArray[np.int64]
    terms_NT: tuple[FloatArray, FloatArray]

    def by_document(self) -> tuple[DocumentScores, DocumentScores]:
        return self._by(self.document_N)

    def by_position(self) -> tuple[DocumentScores, DocumentScores]:
        """As if each position were a document, which is wrong: those of one document are alike."""
        return self._by(np.arange(len(self.document_N)))

    def _by(self, unit_N: npt.NDArray[np.int64]) -> tuple[DocumentScores, DocumentScores]:
        row_N = np.zeros_like(unit_N)
        first, second = (DocumentScores.of(Stretches.of(row_N, unit_N, terms)) for terms in self.terms_NT)
        return first, second


def drawn_pair(
    generator: np.random.Generator, kinds: tuple[Kind, ...], documents: int, skills: tuple[float, float], own: float
) -> Pair:
    """Two models on drawn documents, positively correlated: what is easy for one mostly is for the other.

    At each position two samples are drawn: the first token is right with probability skill x ease, each further one
    with 0.75; and at one position in fifty both samples say the same wrong words.

    Args:
        generator: Of all draws.
        kinds: Of the documents.
        documents: How many.
        skills: Of the two models.
        own: Share of documents in which a model finds other things easy than everybody does.
    """
    of = generator.choice(len(kinds), documents, p=[kind.share for kind in kinds])
    mean, easy, hard = np.array([[kind.positions, kind.easy, kind.hard] for kind in kinds])[of].T
    counts = 1 + generator.poisson((mean - 1) * np.exp(generator.standard_normal(documents) - 1 / 2))
    document_N = np.repeat(np.arange(documents), counts)
    everybodys, shared = generator.beta(easy, hard), generator.random((len(document_N), 2))

    def terms(skill: float) -> FloatArray:
        ease = np.where(generator.random(documents) < own, generator.beta(easy, hard), everybodys)
        luck = np.where(generator.random((len(document_N), 1)) < 0.7, shared, generator.random(shared.shape))
        # Each sample is right for n tokens if its luck is below skill x ease x 0.75^(n - 1); the better one decides,
        # since 1 + 0 - 0 and 1 + 1 - 1 are one point.
        right = luck.min(1)[:, None] < (skill * ease)[document_N, None] * _GOES_ON**_N
        wrong = generator.random(len(document_N))[:, None] < _SAYS_THE_SAME * np.ones(MAX_N)
        agree = generator.random(len(document_N))[:, None] < _AGREES_ON**_N
        return np.where(wrong, -agree.astype(np.float64), right.astype(np.float64))

    return Pair(document_N, (terms(skills[0]), terms(skills[1])))


@dataclass
class Count:
    """In how many trials what was so.

    Attributes:
        difference, percentile, positions: The interval of the difference held the true one: ours; the plain
            percentiles of the same resamples; and ours of positions that are drawn one by one.
        score: The interval of the first model's BrierLM held the true one.
        told_apart, told_apart_by_positions: p was at most 5 %: ours; and that of positions that are exchanged one by
            one.
    """

    difference: int = 0
    percentile: int = 0
    positions: int = 0
    score: int = 0
    told_apart: int = 0
    told_apart_by_positions: int = 0


def counted(kinds: tuple[Kind, ...], documents: int, skills: tuple[float, float], trials: int, resamples: int) -> Count:
    """Draw two models on documents, and compare them, again and again."""
    count = Count()
    one, other = (true_brierlm(kinds, skill) for skill in skills)
    for seed in range(trials):
        generator = np.random.default_rng([seed, documents, len(kinds), round(100 * skills[1])])
        pair = drawn_pair(generator, kinds, documents, skills, own=0.3)
        first, second = pair.by_document()
        found = compare(first, second, resamples=resamples, confidence=_CONFIDENCE, seed=seed)
        wrong = compare(*pair.by_position(), resamples=_WRONG_RESAMPLES, confidence=_CONFIDENCE, seed=seed)
        count.difference += _holds(found.brierlm, one - other)
        count.percentile += _holds(_plain(first, second, resamples, seed), one - other)
        count.positions += _holds(wrong.brierlm, one - other)
        count.score += _holds(first.scores(resamples, _CONFIDENCE, seed).brierlm, one)
        count.told_apart += found.p_value <= 1 - _CONFIDENCE
        count.told_apart_by_positions += wrong.p_value <= 1 - _CONFIDENCE
    return count


def _holds(score: Score, truth: float) -> bool:
    return score.low is not None and score.high is not None and score.low <= truth <= score.high


def _plain(first: DocumentScores, second: DocumentScores, resamples: int, seed: int) -> Score:
    """The bootstrap's percentiles as they are, whatever the number of documents."""
    drawn = resampled_means(np.hstack([first.sums_DT, second.sums_DT]), first.counts_D, resamples, seed)
    differences = brierlm(drawn[:, :MAX_N]) - brierlm(drawn[:, MAX_N:])
    return with_interval(0, differences, _CONFIDENCE, np.ones(_MANY))


def main() -> None:
    """Print a row for each setting as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resampling", description=__doc__)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--documents", type=int, nargs="+", default=[10, 20, 30, 100, 300])
    arguments = parser.parse_args()
    headings = (
        *("documents", "truth", "interval of the difference", "plain percentiles", "positions drawn"),
        *("interval of a score", "told apart", "told apart by positions"),
    )
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for name, kinds in (("usual", USUAL), ("with easy ones", WITH_EASY_ONES)):
        for documents, skills in itertools.product(arguments.documents, ((1.0, 1.0), (1.0, 0.9))):
            count = counted(kinds, documents, skills, arguments.trials, arguments.resamples)
            truth = " against ".join(f"{true_brierlm(kinds, skill):.1f}" for skill in skills)
            shares = " | ".join(f"{number / arguments.trials:.1%}" for number in vars(count).values())
            print(f"| {documents} {name} | {truth} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
