"""Tokenizers inside artifacts."""

from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import first_line
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EncodedVocabulary, Facts, Vocabulary

TOKENIZER_NAME = "tokenizer.json"


def tokenizer_of(artifact: Artifact[Facts], vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer inside an artifact, with the special tokens that its facts name.

    Raises:
        ArtifactError: It is missing or damaged, or has other tokens than the facts say. A model may know of more.
    """
    data, known = artifact.read(TOKENIZER_NAME), vocabulary.vocab_size
    try:
        tokenizer = Tokenizer.from_bytes(data, vocabulary.pad_id, vocabulary.eos_id, vocabulary.bos_id)
        size = tokenizer.vocab_size
    except Exception as error:  # the library raises plain ones
        raise artifact.damaged(TOKENIZER_NAME, f"no tokenizer: {first_line(error):.200}") from None
    if size > known or (size < known and isinstance(vocabulary, EncodedVocabulary)):
        raise artifact.damaged(TOKENIZER_NAME, f"{size:,} tokens, not {known:,}")
    return tokenizer
