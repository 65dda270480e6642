"""Which scores may be compared: the protocol is part of the number."""

from collections.abc import Sequence

from calm_core.errors import CalmError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts

NO_START = "none"  # a protocol whose documents begin with no token of their own
# What earlier versions left out of a protocol, since there was no choice.
_EARLIER: dict[str, str | int] = {"packing": "documents", "start_of_text": NO_START}


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
    expected = _EARLIER | first.facts.protocol
    for other in others:
        found = _EARLIER | other.facts.protocol
        differences = [
            f"{key} {expected.get(key)} against {found.get(key)}"
            for key in sorted(expected.keys() | found.keys())
            if expected.get(key) != found.get(key)
        ]
        if differences:
            raise CalmError(
                f"{first.uri} and {other.uri} cannot be compared, their protocols differ: {'; '.join(differences)}; "
                "evaluate both alike"
            )
