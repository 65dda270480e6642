"""The curves of a training, as its artifact keeps them: nothing here imports torch."""

import json
from collections.abc import Mapping, Sequence

from calm_core.store.artifact import Artifact
from calm_core.store.facts import ModelFacts

CURVES_NAME = "curves.jsonl"

Curve = Sequence[Mapping[str, float]]
"""Points in their order: the step, and the metrics that were measured then."""


def curve_of(artifact: Artifact[ModelFacts]) -> Curve:
    """The points of a model's training.

    Raises:
        ArtifactError: The file is missing, damaged, or holds something else.
    """
    try:
        rows = [json.loads(line) for line in artifact.read(CURVES_NAME).splitlines()]
    except (ValueError, RecursionError):
        rows = [None]
    if not all(isinstance(row, dict) and "step" in row and {*map(type, row.values())} <= {int, float} for row in rows):
        raise artifact.damaged(CURVES_NAME, "no curves")
    return rows
