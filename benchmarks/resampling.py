"""How often intervals hold the truth, and p-values are right, on made-up models whose truth is known.

`python -m benchmarks.resampling` prints a table: coverage of 95 % intervals, how often equal models are told apart, and
how often unequal ones are.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calm_core.evaluation.brier import MAX_N, brierlm
from calm_core.evaluation.documents import DocumentScores, Stretches
from calm_core.evaluation.resampling import FloatArray

_GOES_ON, _SAYS_THE_SAME, _AGREES_ON = 0.75, 0.02, 0.5
_N = np.arange(MAX_N)


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
