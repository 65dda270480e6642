"""Which of several models is better: differences of their scores on the same documents, and which may be compared."""

from collections.abc import Sequence

import numpy as np

from calm_core.errors import CalmError
from calm_core.evaluation.brier import brierlm
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.resampling import (
    FloatArray,
    exchanged_means,
    holm,
    p_value,
    resampled_means,
    with_interval,
)
from calm_core.store.artifact import Artifact
from calm_core.store.facts import Difference, EvaluationFacts, Score, ScoreDifference
from calm_core.store.protocol import differences


def compare(
    first: DocumentScores, second: DocumentScores, *, resamples: int, confidence: float, seed: int
) -> Difference:
    """How much better the first of two models is, on the same documents.

    Of each number the interval is that of the bootstrap over documents, both models on the same ones; the p-value is
    that of a randomisation test, in which the two change places on each document with probability 1/2.

    A Brier-n below zero counts as zero in BrierLM, here and in each resample. So two models of which one Brier-n each
    is surely below zero have no difference (0, p-value 1), whatever their other terms; and near zero the resamples
    that fall below it pile up at one end of the interval. The differences of the Brier-n are of unclamped ones.

    Args:
        first, second: Scores by document, by the same protocol.
        resamples: How often documents are drawn, and places exchanged; the least p-value is 1 / (1 + resamples).
        confidence: Of the intervals.
        seed: Of all draws; equal ones give equal numbers.

    Returns:
        First minus second.

    Raises:
        CalmError: They are scores of different documents.
    """
    _require_same_documents(first, second)
    counts_D, terms = first.counts_D, len(first.mean_T)
    drawn_XT = resampled_means(np.hstack([first.sums_DT, second.sums_DT]), counts_D, resamples, seed)
    exchanged = exchanged_means(first.sums_DT, second.sums_DT, counts_D, resamples, seed)
    value_M = _differences(first.mean_T, second.mean_T)
    drawn_XM = _differences(drawn_XT[:, :terms], drawn_XT[:, terms:])
    exchanged_XM = _differences(*exchanged)

    def of(measure: int) -> ScoreDifference:
        value = float(value_M[measure])
        score = with_interval(value, drawn_XM[:, measure], confidence, counts_D)
        return ScoreDifference(
            value=value, low=score.low, high=score.high, p_value=p_value(value, exchanged_XM[:, measure])
        )

    return Difference(
        brierlm=of(terms),
        brier={str(n): of(n - 1) for n in range(1, terms + 1)},
        documents=len(counts_D),
        positions=first.positions,
        resamples=resamples,
        confidence=confidence,
    )


def compare_all(
    base: DocumentScores, others: Sequence[DocumentScores], *, resamples: int, confidence: float, seed: int
) -> list[Difference]:
    """How much better each of several models is than one, on the same documents.

    With two or more, p-values are also corrected by Holm's method: of all models that are no better or worse than the
    base, one or more is taken for such in 5 % of all cases at most, if 5 % is where the line is drawn.

    Args:
        base: What the others are compared with.
        others: One or more.
        resamples, confidence, seed: As of `compare`.

    Returns:
        Of each of the others, its scores less the base's.

    Raises:
        CalmError: They are scores of different documents.
    """
    found = [compare(other, base, resamples=resamples, confidence=confidence, seed=seed) for other in others]
    if len(found) < 2:
        return found
    brierlms = _corrected([each.brierlm for each in found])
    briers = {n: _corrected([each.brier[n] for each in found]) for n in found[0].brier}
    return [
        each.model_copy(update={"brierlm": brierlms[i], "brier": {n: terms[i] for n, terms in briers.items()}})
        for i, each in enumerate(found)
    ]


def compare_evaluations(
    base: Artifact[EvaluationFacts],
    others: Sequence[Artifact[EvaluationFacts]],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[Difference]:
    """`compare_all` of evaluations.

    Raises:
        CalmError: They were not measured alike, or were made by a version that kept no scores of single documents.
    """
    require_same_protocol([base, *others])
    scores = [DocumentScores.read(evaluation) for evaluation in (base, *others)]
    return compare_all(scores[0], scores[1:], resamples=resamples, confidence=confidence, seed=seed)


def mean_score(scores: Sequence[DocumentScores], *, resamples: int, confidence: float, seed: int) -> Score:
    """The mean BrierLM of several models that were trained alike, with its interval over documents, all on the same.

    It tells where the mean of these very models would lie on other documents; how other seeds would do, their spread.

    Args:
        scores: Of each model, by the same protocol.
        resamples, confidence, seed: As of `compare`.

    Raises:
        CalmError: They are scores of different documents.
    """
    first, *others = scores
    for other in others:
        _require_same_documents(first, other)
    sums_DT, terms = np.hstack([each.sums_DT for each in scores]), len(first.mean_T)
    drawn_XT = resampled_means(sums_DT, first.counts_D, resamples, seed)
    drawn_XS = brierlm(drawn_XT.reshape(len(drawn_XT), len(scores), terms))
    value = float(np.mean([brierlm(each.mean_T) for each in scores]))
    return with_interval(value, drawn_XS.mean(1), confidence, first.counts_D)


def require_same_protocol(evaluations: Sequence[Artifact[EvaluationFacts]]) -> None:
    """Refuse to compare scores that were not measured alike.

    Raises:
        CalmError: Two protocols differ; the message names each difference. Or a score is of no position at all, as
            earlier versions gave one.
    """
    for evaluation in evaluations:
        if evaluation.facts.protocol.get("positions") == 0:
            raise CalmError(f"{evaluation.uri}: no position counted, so its score says nothing; evaluate on more text")
    first, *others = evaluations
    for other in others:
        found = differences(first.facts.protocol, other.facts.protocol)
        if found:
            told = "; ".join(f"{name} {ours} against {theirs}" for name, (ours, theirs) in found.items())
            raise CalmError(
                f"{first.uri} and {other.uri} cannot be compared, their protocols differ: {told}; evaluate both alike"
            )


def _differences(first_T: FloatArray, second_T: FloatArray) -> FloatArray:
    """First less second: Brier-1..4, and behind them BrierLM; [..., 4] -> [..., 5]."""
    headline = brierlm(first_T) - brierlm(second_T)
    return np.concatenate([first_T - second_T, headline[..., None]], axis=-1)


def _corrected(found: Sequence[ScoreDifference]) -> list[ScoreDifference]:
    p_values = holm([each.p_value for each in found])
    return [each.model_copy(update={"corrected_p_value": p}) for each, p in zip(found, p_values, strict=True)]


def _require_same_documents(first: DocumentScores, second: DocumentScores) -> None:
    if len(first.documents_D) != len(second.documents_D):
        raise CalmError(
            f"scores of {len(first.documents_D):,} documents cannot be compared with scores of "
            f"{len(second.documents_D):,}; evaluate both models on the same dataset, alike"
        )
    unlike = (first.documents_D != second.documents_D) | (first.counts_D != second.counts_D)
    if unlike.any():
        number = first.documents_D[unlike.argmax()]
        raise CalmError(
            f"document {number:,} and {unlike.sum() - 1:,} others were not scored alike in both; evaluate both models "
            "on the same dataset, alike"
        )
