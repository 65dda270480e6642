"""The second step of preparing: a partition's documents are counted, and a key of each is kept."""

from collections import Counter

from calm_core.config import DataConfig
from calm_core.data.preparing.inputs import document_settings
from calm_core.data.preparing.keys import TEXT, KeyWriter, band_keys, band_names, text_key
from calm_core.data.preparing.progress import STAGE, Progress
from calm_core.data.preparing.splits import text_hash
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.formats import Document
from calm_core.data.sources.partitions import Partition
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import ScanFacts
from calm_core.telemetry.progress import reported

SHOWN_REJECTS = 20


def scan_partition(partition: Partition, config: DataConfig, output_uri: str) -> Artifact[ScanFacts]:
    """Hash every usable document of a partition and count the others by reason.

    Returns:
        A `scan` artifact: keys/*.bin (see `keys`), counts, and examples of rejects.
    """
    settings = document_settings(partition, config)
    if made := reusable(output_uri, ScanFacts, settings, {}):
        return made
    with (
        reported(STAGE, f"partition {partition.index}: scanning"),
        ArtifactWriter(output_uri, ScanFacts, settings, {}, overwrite=True) as writer,
    ):
        scan, progress = _Scan(partition.index, writer, config.near_duplicate_threshold), Progress()
        for document in read_documents(partition, config):
            if progress.is_due():
                progress.tell(scan.note)
            scan.add(document)
        writer.facts = scan.finish()
        progress.tell(scan.note)
    return Artifact(output_uri, ScanFacts)


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

    @property
    def note(self) -> str:
        """How far the scan is."""
        counts = f"{self._documents:,} documents scanned, {self._rejected.total():,} rejected"
        return f"partition {self._partition}: {counts}"

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
        )
