"""Growing a dataset: which sources are new to it."""

import re
from collections.abc import Sequence

from calm_core.config import DataConfig
from calm_core.data.preparing.keys import refuse_other_keys
from calm_core.data.sources.content import FoundFile
from calm_core.data.tokenizers.stored import tokenizer_of
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ConfigError, SourceError
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import DatasetFacts, SourceFile

_KEPT = (
    "sequence_length",
    "packing",
    "start_of_text",
    "document_alignment",
    "rows_per_group",
    "validation_fraction",
    "unicode_normalization",
    "near_duplicate_threshold",
)


class Extension:
    """A dataset that is taken over, with what is needed to add to it.

    Its documents keep their split, since that depends on their text and `validation_fraction` alone.

    Raises:
        ArtifactError: It is damaged.
        ConfigError: Its sequences or splits have another shape than the settings ask for, or it knows near-duplicates
            by other keys.
    """

    def __init__(self, config: DataConfig) -> None:
        self.parent = Artifact(config.extends, DatasetFacts)
        self._replace = config.replace_changed
        settings = self.parent.facts.part("results") | self.parent.manifest.config  # what was asked for goes first
        for name in _KEPT:
            own = settings.get(name, DataConfig.model_fields[name].default)  # older datasets had no choice
            if own != getattr(config, name):
                raise ConfigError(
                    f"data.{name}: the dataset {config.extends} has {own!s:.100}, not {getattr(config, name)}; set "
                    f"it so, or prepare a new dataset"
                )
        refuse_other_keys(self.parent, config.near_duplicate_threshold)
        made_of = [int(name[7:]) for name in self.parent.manifest.parents if re.fullmatch(r"shards-\d{1,9}", name)]
        if made_of and self.partitions != 1 + max(made_of):
            raise self.parent.damaged(MANIFEST_NAME, f"{self.partitions:,} partitions, not {1 + max(made_of):,}")

    @classmethod
    def of(cls, config: DataConfig) -> "Extension | None":
        """The dataset that the settings extend, if they do."""
        return cls(config) if config.extends else None

    @property
    def files(self) -> list[SourceFile]:
        """The files that are in it."""
        return self.parent.facts.sources

    @property
    def partitions(self) -> int:
        """How many partitions are in it; those that are added are counted on from here."""
        return self.parent.facts.partitions

    def files_to_read(self, found: Sequence[FoundFile]) -> tuple[list[FoundFile], int]:
        """Which of the files that were found have to be read, and the index of their first partition.

        Index 0 means that everything is prepared anew, because a file has been replaced.

        Raises:
            SourceError: A file has changed under its name, and no replacement was asked for; or one that is not named
                again, and has to be read again, has changed or is gone.
        """
        digest_of_name = {file.uri: file.digest for file in self.files}
        changed = [file.uri for file in found if digest_of_name.get(file.uri, file.digest) != file.digest]
        if not changed:
            known = set(digest_of_name.values())
            return [file for file in found if file.digest not in known], self.partitions
        if not self._replace:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise SourceError(
                f"{changed[0]}{more}: changed since it was added to {self.parent.uri}; give the new text another name, "
                "or set data.replace_changed=true to prepare all sources anew without the old content"
            )
        digests = {file.digest for file in found}  # of these, also those that were moved
        kept = [file for file in self.files if file.uri not in changed and file.digest not in digests]
        return [*map(self._found_again, kept), *found], 0

    def _found_again(self, file: SourceFile) -> FoundFile:
        found = FoundFile.at(file.uri)
        if found.digest != file.digest:
            raise SourceError(
                f"{file.uri}: changed since it was added to {self.parent.uri}; name it in data.sources as well, or "
                "restore it"
            )
        return found

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return tokenizer_of(self.parent, self.parent.facts)
