"""The second step of preparing: a partition's documents are counted, and a key of each is kept."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from calm_core.config import DataConfig
from calm_core.data.preparing.inputs import document_settings
from calm_core.data.preparing.keys import TEXT, KeyWriter, band_keys, band_names, key_files, text_key
from calm_core.data.preparing.progress import STAGE, Progress, of_partition
from calm_core.data.preparing.splits import text_hash
from calm_core.data.preparing.step import Step
from calm_core.data.preparing.workers import Workers, most_workers
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.formats import Document
from calm_core.data.sources.partitions import Partition
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import ScanFacts
from calm_core.telemetry.progress import reported

SHOWN_REJECTS = 20


def scan_partition(partition: Partition, config: DataConfig, output_uri: str) -> Artifact[ScanFacts]:
    """Hash every usable document of a partition and count the others by reason, with all the processes that have room.

    Returns:
        A `scan` artifact: keys/*.bin (see `keys`), counts, and examples of rejects.
    """
    with Workers(most_workers()) as workers:
        return scan_partitions([partition], config, [output_uri], workers)[0]


def scan_partitions(
    partitions: Sequence[Partition], config: DataConfig, output_uris: Sequence[str], workers: Workers
) -> list[Artifact[ScanFacts]]:
    """As `scan_partition`, of several partitions at a time."""
    where = of_partition(partitions)
    with reported(STAGE, f"{where}scanning"):
        progress = Progress(f"{where}{{done:,}} documents scanned, {{counted:,}} rejected")
        return _Scanning(progress, config).each(partitions, output_uris, workers)


@dataclass(frozen=True)
class _Scanning(Step[ScanFacts]):
    """The step, with its settings."""

    config: DataConfig
    kind = ScanFacts

    def settings(self, part: Partition) -> dict[str, Any]:
        return document_settings(part, self.config)

    def documents(self, part: Partition, facts: ScanFacts) -> int:
        return facts.documents

    def write(self, part: Partition, writer: ArtifactWriter[ScanFacts]) -> ScanFacts:
        scan = _Scan(part.index, writer, self.config.near_duplicate_threshold)
        for document in read_documents(part, self.config):
            scan.add(document)
            self.progress.add(done=not document.reason, counted=bool(document.reason))
        return scan.finish()

    def join(
        self, partition: Partition, parts: Iterator[Artifact[ScanFacts]], writer: ArtifactWriter[ScanFacts]
    ) -> ScanFacts:
        scan = _Scan(partition.index, writer, self.config.near_duplicate_threshold)
        for part in parts:
            scan.take(part)
        return scan.finish()


class _Scan:
    """Keys and counts of a partition's documents.

    Args:
        partition: Its index.
        writer: Where the keys are written.
        threshold: Similarity of near-duplicates, 0 where they are not looked for.
    """

    def __init__(self, partition: int, writer: ArtifactWriter[ScanFacts], threshold: float) -> None:
        self._partition, self._threshold = partition, threshold
        self._text_keys = KeyWriter(writer, TEXT)
        self._bands = [KeyWriter(writer, name) for name in band_names(threshold)]
        self._documents = self._text_bytes = self._normalized = 0
        self._rejected: Counter[str] = Counter()
        self._examples: list[str] = []
        self._portions: list[int] = []

    def add(self, document: Document) -> None:
        """Take in the next document."""
        if document.reason:
            self._rejected[document.reason] += 1
            if len(self._examples) < SHOWN_REJECTS:
                self._examples.append(document.told)
            return
        data = document.text.encode("utf-8")
        self._text_keys.add(text_key(text_hash(data)))
        if self._bands:
            for band, key in zip(self._bands, band_keys(document.text, self._threshold), strict=True):
                band.add(key)
        self._documents += 1
        self._normalized += document.normalized
        self._text_bytes += len(data)

    def take(self, part: Artifact[ScanFacts]) -> None:
        """Take in the documents of a portion.

        Raises:
            ArtifactError: It is damaged.
        """
        for keys, name in zip((self._text_keys, *self._bands), (TEXT, *band_names(self._threshold)), strict=True):
            for file in key_files(part, f"keys/{name}-"):
                keys.add(file.keys())
        facts = part.facts
        self._documents += facts.documents
        self._normalized += facts.normalized
        self._text_bytes += facts.text_bytes
        self._rejected.update(facts.rejected)
        self._examples = [*self._examples, *facts.reject_examples][:SHOWN_REJECTS]
        self._portions.append(facts.documents)

    def finish(self) -> ScanFacts:
        """Write the keys that are left; returns the counts."""
        for keys in (self._text_keys, *self._bands):
            keys.close()
        return ScanFacts(
            partition=self._partition,
            documents=self._documents,
            text_bytes=self._text_bytes,
            normalized=self._normalized,
            rejected=dict(sorted(self._rejected.items())),
            reject_examples=self._examples,
            portions=self._portions or [self._documents],
        )
