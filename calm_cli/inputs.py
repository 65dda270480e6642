"""What stages read, looked at before they begin: manifests alone, so that a slip costs no time."""

from collections.abc import Mapping

from calm_core.errors import ArtifactError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import (
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    MixtureFacts,
    TransformerFacts,
)

_KINDS: Mapping[str, tuple[type[Facts], ...]] = {
    "--dataset": (DatasetFacts, MixtureFacts),
    "--extends": (DatasetFacts,),
    "--autoencoder": (AutoencoderFacts,),
    "--evaluation": (EvaluationFacts,),
    "MODEL": (CalmFacts, TransformerFacts),
    "CALM model": (CalmFacts,),
}


def require_inputs(inputs: Mapping[str, str]) -> None:
    """Open the artifacts that options and arguments name.

    Args:
        inputs: Their URIs, by option or argument; empty ones are left out.

    Raises:
        ArtifactError: One is missing, damaged, or of another kind; the line begins with its option.
    """
    for option, uri in inputs.items():
        if uri:
            try:
                Artifact(uri, *_KINDS[option])
            except ArtifactError as error:
                raise ArtifactError(f"{option} {error}") from None
