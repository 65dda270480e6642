"""Tokenizers inside artifacts."""

from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import first_line
from calm_core.store.artifact import Artifact
from calm_core.store.facts import Facts, Vocabulary

TOKENIZER_NAME = "tokenizer.json"


def tokenizer_of(artifact: Artifact[Facts], vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer inside an artifact, with the special tokens that its facts name.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    data = artifact.read(TOKENIZER_NAME)
    try:
        return Tokenizer.from_bytes(data, vocabulary.pad_id, vocabulary.eos_id)
    except Exception as error:  # the library raises plain ones
        raise artifact.damaged(TOKENIZER_NAME, f"no tokenizer: {first_line(error):.200}") from None
