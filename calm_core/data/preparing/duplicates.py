"""The step of preparing that finds duplicates over all partitions.

Its memory does not grow with the sources, but for two bits a document: keys are compared one range of them after the
other (see `keys`), and each range is read from all partitions. The first one of equal documents in the order of the
sources stays.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calm_core.config import DataConfig
from calm_core.data.preparing.counts import count_documents, refuse_too_many_rejects
from calm_core.data.preparing.dropped import Dropped
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.inputs import in_order
from calm_core.data.preparing.keys import BUCKETS, TEXT, KeyFile, Numbers, Records, band_names, key_files
from calm_core.data.preparing.progress import STAGE
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import DuplicatesFacts, Facts, ScanFacts
from calm_core.telemetry.progress import report, reported

_RANGE_DOCUMENTS = 1 << 22  # keys of all partitions that are compared at a time
_FILES_AT_A_TIME = 16


class DocumentKeys(NamedTuple):
    """The keys of one partition's documents.

    Attributes:
        artifact: Where they lie.
        prefix: What stands before the names of the keys in the paths there.
        dropped: Where repeated documents are marked; None where all stay anyway.
    """

    artifact: Artifact[Facts]
    prefix: str
    dropped: Dropped | None

    def drop(self, documents: npt.NDArray[np.uint32], name: str) -> None:
        """Mark documents that repeat an earlier key of this name."""
        if self.dropped is not None:
            if len(documents) and documents.max() >= self.dropped.documents:
                raise self.artifact.damaged(f"{self.prefix}{name}-00000.bin", "keys of documents that are not there")
            self.dropped.mark(documents, near=name != TEXT)


@reported(STAGE, "looking for duplicates")
def find_duplicates(scan_uris: Sequence[str], config: DataConfig, output_uri: str) -> Artifact[DuplicatesFacts]:
    """Find documents that repeat an earlier one, over all partitions; the first in the order of the sources stays.

    Returns:
        A `duplicates` artifact: dropped/<partition>.parquet says of each document whether it stays.

    Raises:
        SourceError: Too many documents were rejected, which is known here, before any of them is tokenised.
    """
    extension = Extension.of(config)
    scans = in_order(scan_uris, ScanFacts, {0, extension.partitions} if extension else {0})
    facts = [scan.facts for scan in scans]
    refuse_too_many_rejects(count_documents(facts, DuplicatesFacts(duplicates=0, near_duplicates=0), []), facts, config)
    first = scans[0].facts.partition
    parents = {f"scan-{i}": scan.digest for i, scan in enumerate(scans, first)}
    before: list[DocumentKeys] = []
    if extension and first:
        parents["extends"] = extension.parent.digest
        before = [DocumentKeys(extension.parent, f"documents/part-{i:05d}-", None) for i in range(first)]
    if made := reusable(output_uri, DuplicatesFacts, {}, parents):
        return made
    with ArtifactWriter(output_uri, DuplicatesFacts, {}, parents, overwrite=True) as writer:
        dropped = _compared(before, scans, config.near_duplicate_threshold)
        counts = [part.write(writer, f"dropped/{i:05d}.parquet") for i, part in enumerate(dropped, first)]
        exact, near = (sum(column) for column in zip(*counts, strict=True))
        portions = {str(scan.facts.partition): scan.facts.portions for scan in scans}
        writer.facts = DuplicatesFacts(duplicates=exact, near_duplicates=near, portions=portions)
        report(STAGE, note=f"{exact:,} duplicates, {near:,} near-duplicates found")
    return Artifact(output_uri, DuplicatesFacts)


def _compared(before: list[DocumentKeys], scans: list[Artifact[ScanFacts]], threshold: float) -> list[Dropped]:
    """Which documents of the scans repeat one of theirs, or of the partitions before them."""
    dropped = [Dropped(scan.facts.documents) for scan in scans]
    found = [DocumentKeys(scan, "keys/", part) for scan, part in zip(scans, dropped, strict=True)]
    documents = sum(scan.facts.documents for scan in scans)
    for name in (TEXT, *band_names(threshold)):
        report(STAGE, note=f"comparing {documents:,} documents by {name}")
        mark([*before, *found], name)
    return dropped


def mark(partitions: list[DocumentKeys], name: str) -> None:
    """Drop all documents that share a key of this name with an earlier one.

    Raises:
        ArtifactError: A file of keys is missing or damaged.
    """
    found = [(keys, file) for keys in partitions for file in key_files(keys.artifact, f"{keys.prefix}{name}-")]
    partition_of_file, files = [keys for keys, _ in found], [file for _, file in found]
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        starts = list(pool.map(KeyFile.starts, files))
        _refuse_other_numbers(partitions, partition_of_file, starts)
        for first, end in _ranges(starts):
            parts = pool.map(KeyFile.records, files, starts, repeat(first), repeat(end))
            unique: list[Records] = []
            for keys, records in zip(partition_of_file, parts, strict=True):
                repeats = _equals_previous(records)  # dropped at once: one text repeated must not fill the memory
                keys.drop(records["document"][repeats], name)
                unique.append(records[~repeats])
            _mark_repeats(partition_of_file, unique, name)


def _refuse_other_numbers(partitions: list[DocumentKeys], found: list[DocumentKeys], starts: list[Numbers]) -> None:
    """Raise an ArtifactError where a partition has more or fewer keys than documents; `found` owns the files."""
    for keys in partitions:
        number = sum(int(start[-1]) for start, owner in zip(starts, found, strict=True) if owner is keys)
        if keys.dropped is not None and number != keys.dropped.documents:
            raise keys.artifact.damaged(keys.prefix, f"{number:,} keys of {keys.dropped.documents:,} documents")


def _ranges(starts: list[Numbers]) -> Iterator[tuple[int, int]]:
    """Runs of buckets [first, end) that together hold about as many keys as are compared at a time.

    Buckets are numbered by the keys of all files that come before them, in units of that many; a run begins where this
    number changes. With 4 keys at a time:

        keys before a bucket    0  3  3  5  6  9 12
        // 4                    0  0  0  1  1  2  3
        runs                   [0        3     5  6  BUCKETS)
    """
    if starts:
        before = np.sum(starts, axis=0)[:BUCKETS]
        firsts = np.flatnonzero(np.diff(before // _RANGE_DOCUMENTS, prepend=-1)).tolist()
        yield from pairwise([*firsts, BUCKETS])


def _equals_previous(records: Records) -> npt.NDArray[np.bool_]:
    """Of records in the order of their keys: which have the key of the one before."""
    equal = np.zeros(len(records), bool)
    equal[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return equal


def _mark_repeats(partition_of_part: list[DocumentKeys], parts: list[Records], name: str) -> None:
    """Drop the documents whose key is also in an earlier part.

    Args:
        partition_of_part: The partition of each part.
        parts: Records in the order of the sources, each key once in a part; they are used up.
        name: Of the keys.
    """
    part_of = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    records = np.concatenate(parts)
    parts.clear()
    order = np.lexsort((records["low"], records["high"]))  # stable: equal keys stay in the order of the sources
    repeated = order[_equals_previous(records[order])]
    for part in np.unique(part_of[repeated]).tolist():
        partition_of_part[part].drop(records["document"][repeated[part_of[repeated] == part]], name)
