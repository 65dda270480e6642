"""Which scores may be compared: the protocol is part of the number."""

from collections.abc import Sequence

from calm_core.errors import CalmError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts
from calm_core.store.protocol import differences


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
