"""A step of preparing that is done of each partition: its portions side by side, then joined.

Each portion's result is an artifact, kept beside the partition's until that is complete: what a killed run has finished
is taken by the next one, wherever it runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Generic

from calm_core.data.preparing.inputs import OfPartition, portion_settings
from calm_core.data.preparing.progress import Progress
from calm_core.data.preparing.workers import Workers
from calm_core.data.sources.partitions import Partition, Portion
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable

PORTIONS = ".portions"
"""Ends the name of the folder beside a partition's artifact in which those of its portions lie."""


@dataclass(frozen=True)
class Step(ABC, Generic[OfPartition]):
    """What is done of each partition.

    Attributes:
        progress: Of all partitions together.
    """

    progress: Progress
    kind: ClassVar[Any]

    @property
    def parents(self) -> Mapping[str, str]:
        """Digests of what the artifacts are made of, beside the sources."""
        return {}

    @abstractmethod
    def settings(self, part: Partition) -> dict[str, Any]:
        """What the artifact of a partition or a portion depends on."""

    @abstractmethod
    def documents(self, part: Partition, facts: OfPartition) -> int:
        """How many documents are behind an artifact."""

    @abstractmethod
    def write(self, part: Partition, writer: ArtifactWriter[OfPartition]) -> OfPartition:
        """Do the work on a partition or a portion."""

    @abstractmethod
    def join(
        self, partition: Partition, parts: Iterator[Artifact[OfPartition]], writer: ArtifactWriter[OfPartition]
    ) -> OfPartition:
        """Make of the artifacts of all portions, in their order, what `write` would have made of the partition."""

    def each(
        self, partitions: Sequence[Partition], uris: Sequence[str], workers: Workers
    ) -> list[Artifact[OfPartition]]:
        """Do the step of partitions; the bytes do not depend on how many processes there are, or have been killed.

        Args:
            partitions: The partitions.
            uris: Where the artifact of each is written.
            workers: The processes.
        """
        shares = [_Share(partition, uri, partition.portions()) for partition, uri in zip(partitions, uris, strict=True)]
        made = {share.uri: self._made(share.partition, share.uri) for share in shares if share.is_cut}
        todo = [share for share in shares if not made.get(share.uri)]
        parts = [(part, uri) for share in todo for part, uri in share.parts()]
        results = workers.map(self.do, *zip(*parts, strict=True)) if parts else iter(())
        for share in todo:
            of_share = islice(results, len(share.portions))
            made[share.uri] = self._joined(share, of_share) if share.is_cut else next(of_share)
        for share in shares:
            if share.is_cut:
                storage.remove_folder(share.place)
        self.progress.tell()
        return [artifact for uri in uris if (artifact := made[uri])]

    def do(self, part: Partition, uri: str) -> Artifact[OfPartition]:
        """Do the step of a partition or a portion, or take what lies there of it."""
        if made := self._made(part, uri):
            return made
        if isinstance(part, Portion):  # nobody else's place: what is damaged there is in nobody's way
            storage.remove_folder(uri)
        with ArtifactWriter(uri, self.kind, self._settings(part), self.parents, overwrite=True) as writer:
            writer.facts = self.write(part, writer)
        self.progress.share()
        return Artifact(uri, self.kind)

    def _joined(self, share: "_Share", parts: Iterator[Artifact[OfPartition]]) -> Artifact[OfPartition]:
        settings = self._settings(share.partition)
        with ArtifactWriter(share.uri, self.kind, settings, self.parents, overwrite=True) as writer:
            writer.facts = self.join(share.partition, parts, writer)
        return Artifact(share.uri, self.kind)

    def _made(self, part: Partition, uri: str) -> Artifact[OfPartition] | None:
        if made := reusable(uri, self.kind, self._settings(part), self.parents):
            self.progress.keep(self.documents(part, made.facts))
        return made

    def _settings(self, part: Partition) -> dict[str, Any]:
        return self.settings(part) | portion_settings(part)


@dataclass(frozen=True)
class _Share:
    """A partition, where its artifact is written, and its portions: itself alone where it is not cut."""

    partition: Partition
    uri: str
    portions: Sequence[Partition]

    @property
    def is_cut(self) -> bool:
        return len(self.portions) > 1

    @property
    def place(self) -> str:
        return storage.beside(self.uri, PORTIONS)

    def parts(self) -> list[tuple[Partition, str]]:
        if not self.is_cut:
            return [(self.partition, self.uri)]
        return [(part, storage.join(self.place, f"{i:05d}")) for i, part in enumerate(self.portions)]
