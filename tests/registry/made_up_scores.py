"""Evaluations of a model that found other scores: on forty documents, as good as is said."""

from pathlib import Path
from typing import Any

import numpy as np

from calm_core.evaluation.documents import DocumentScores
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import EvaluationFacts

DOCUMENTS, POSITIONS = 40, 5


def made_up_scores(brierlm: float, noise: float = 0.02, seed: int = 0) -> DocumentScores:
    """Scores by document around a BrierLM, whose Brier terms are alike."""
    spread_DT = np.random.default_rng(seed).normal(0, noise, (DOCUMENTS, 4))
    sums_DT = POSITIONS * (brierlm / 100 + spread_DT - spread_DT.mean(0))
    return DocumentScores(np.arange(DOCUMENTS), np.full(DOCUMENTS, float(POSITIONS)), sums_DT)


def scored_otherwise(
    evaluation_uri: str, brierlm: float, output: Path, *, seed: int = 0, accuracy: float = 0.9, **protocol: Any
) -> str:
    """The URI of an evaluation of the same model that found another BrierLM, and that accuracy of its autoencoder."""
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    documents, config = made_up_scores(brierlm, seed=seed), evaluation.manifest.config
    scores = documents.scores(resamples=100, confidence=0.9, seed=0)
    with ArtifactWriter(str(output), EvaluationFacts, config, evaluation.manifest.parents) as writer:
        documents.write(writer)
        writer.facts = evaluation.facts.model_copy(
            update={
                **dict(scores),
                "autoencoder_accuracy": accuracy,
                "protocol": evaluation.facts.protocol | {"positions": documents.positions} | protocol,
            }
        )
    return str(output)
