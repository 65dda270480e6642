"""Scores by document, the unit that is drawn with replacement: positions of one text are no independent observations.

Suffixes of names as in `calm_core.evaluation.samplers`, and
    R sequences in order    D documents    G stretches of one document in one sequence    N scored positions
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from calm_core.data.damage import is_damage
from calm_core.data.reading.dataset import Dataset
from calm_core.data.reading.order import Numbers
from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.brier import MAX_N, brierlm
from calm_core.evaluation.resampling import FloatArray, resampled_means, with_interval
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import ROUNDING, BrierScores, EvaluationFacts

DOCUMENTS_NAME = "documents.parquet"

_COLUMNS = {"document": pa.int32(), "positions": pa.int64()} | {f"brier_{n}": pa.float64() for n in range(1, MAX_N + 1)}
_SCHEMA = pa.schema([pa.field(name, type_, nullable=False) for name, type_ in _COLUMNS.items()])
_ROW_BYTES = 64  # a document takes less in a file: 44 bytes of values, and its share of the pages' heads
_FILE_BYTES = 1 << 16  # what a file may have beside
_LARGEST_FILE = 1 << 30  # bytes, in memory: of more documents than can be resampled
_LARGEST_TERM = 2.0  # 2 P(y) - sum P(x)^2 lies between -1 and 2


class Places(NamedTuple):
    """Where tokens stand: the number of each one's document, and how many tokens of the document are before it."""

    document_RT: Numbers
    offset_RT: Numbers


class DocumentNumbers:
    """Numbers the documents of a split, whose sequences are shown in order.

    A document begins at BOS where the packing has one, else behind EOS, and behind padding. One that a sequence ends
    inside goes on in the next. Where a packing marks no beginning at all, each sequence counts as a document.

    Args:
        dataset: The split.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._bos_id, self._eos_id, self._pad_id = dataset.bos_id, dataset.eos_id, dataset.pad_id
        self._is_marked = dataset.bos_id is not None or dataset.packing == "documents"
        self._begun = self._offset = 0  # documents so far, and tokens of the last one
        self._last = dataset.pad_id

    def of(self, tokens_RT: Numbers) -> Places:
        """Places of the next sequences, int64 [R, T]; those of padding mean nothing."""
        flat = tokens_RT.reshape(-1)
        before = np.concatenate([[self._last], flat[:-1]])
        begins = before == self._pad_id
        begins |= before == self._eos_id if self._bos_id is None else flat == self._bos_id
        begins &= flat != self._pad_id
        if not self._is_marked:
            begins = np.arange(len(flat)) % tokens_RT.shape[1] == 0
        document = self._begun - 1 + np.cumsum(begins)
        here = np.arange(len(flat))
        first = np.maximum.accumulate(np.where(begins, here, -1))  # the last beginning no later; -1: an earlier one
        offset = np.where(first < 0, here + self._offset, here - first)
        self._begun, self._offset, self._last = int(document[-1]) + 1, int(offset[-1]) + 1, int(flat[-1])
        return Places(document.reshape(tokens_RT.shape), offset.reshape(tokens_RT.shape))


class Stretches(NamedTuple):
    """Sums over the scored positions of each document in each sequence, in order.

    Attributes:
        document_G: Number of the document, int64.
        counts_G: How many positions, float64.
        sums_GT: Sums of Brier-1..4, float64.
    """

    document_G: npt.NDArray[np.int64]
    counts_G: FloatArray
    sums_GT: FloatArray

    @classmethod
    def of(cls, row_N: Numbers, document_N: Numbers, terms_NT: FloatArray) -> "Stretches":
        """Stretches of scored positions, which are in order.

        Args:
            row_N: Sequence of each position.
            document_N: Its document.
            terms_NT: Its Brier-1..4.
        """
        changes = (np.diff(row_N, prepend=-1) != 0) | (np.diff(document_N, prepend=-1) != 0)
        return cls(document_N[changes], *_summed(np.cumsum(changes) - 1, np.ones(len(row_N)), terms_NT))

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Them by names, as they are kept of an unfinished evaluation."""
        return {f"{name}.{field}": values for field, values in self._asdict().items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]], name: str) -> "Stretches":
        """The way back; of several batches, one behind the other."""
        return cls(*(arrays[f"{name}.{field}"] for field in cls._fields))


def _summed(group_N: Numbers, counts_N: FloatArray, terms_NT: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sums by group, one addend after the other: they depend on the order alone, not on how it was cut into batches."""
    groups = int(group_N.max(initial=-1)) + 1
    counts_G, sums_GT = np.zeros(groups), np.zeros((groups, terms_NT.shape[1]))
    np.add.at(counts_G, group_N, counts_N)
    np.add.at(sums_GT, group_N, terms_NT)
    return counts_G, sums_GT


@dataclass(frozen=True)
class DocumentScores:
    """Brier terms of a model, summed over the scored positions of each held-out document that has any.

    Attributes:
        documents_D: Number of each document in its split, int64, rising; equal data and protocol give equal numbers.
        counts_D: How many of its positions were scored, float64, at least 1.
        sums_DT: Sums of Brier-1..4 over those, float64 [D, 4].
    """

    documents_D: npt.NDArray[np.int64]
    counts_D: FloatArray
    sums_DT: FloatArray

    @classmethod
    def of(cls, stretches: Stretches) -> "DocumentScores":
        """Sums over whole documents.

        Raises:
            CalmError: No position was scored.
        """
        if not len(stretches.document_G):
            raise CalmError("no position counts, so there is nothing to score")
        documents_D, document_G = np.unique(stretches.document_G, return_inverse=True)
        return cls(documents_D, *_summed(document_G, stretches.counts_G, stretches.sums_GT))

    @property
    def positions(self) -> int:
        """Positions that were scored."""
        return int(self.counts_D.sum())

    @property
    def mean_T(self) -> FloatArray:
        """Brier-1..4 over all positions, float64 [4]."""
        mean: FloatArray = self.sums_DT.sum(0) / self.counts_D.sum()
        return mean

    def scores(self, resamples: int, confidence: float, seed: int) -> BrierScores:
        """Brier-1..4 and BrierLM, with bootstrap intervals over documents.

        Of one document the numbers have no interval: nothing tells how another one would have done.
        """
        resampled_XT = resampled_means(self.sums_DT, self.counts_D, resamples, seed)
        headline = float(brierlm(self.mean_T))
        return BrierScores(
            brierlm=with_interval(headline, brierlm(resampled_XT), confidence, self.counts_D),
            brier={
                str(n): with_interval(mean, resampled_XT[:, n - 1], confidence, self.counts_D)
                for n, mean in enumerate(self.mean_T.tolist(), start=1)
            },
        )

    def write(self, writer: ArtifactWriter[EvaluationFacts]) -> None:
        """Write them into an evaluation; equal scores give equal bytes."""
        values = [self.documents_D, self.counts_D.astype(np.int64), *self.sums_DT.T]
        columns = [_column(column, field.type) for column, field in zip(values, _SCHEMA, strict=True)]
        # Uncompressed: a reader knows from the file's size how much memory it asks for.
        with (
            writer.create(DOCUMENTS_NAME) as file,
            pq.ParquetWriter(
                pa.PythonFile(file, "w"),
                _SCHEMA,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            ) as table,
        ):
            table.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA))

    @classmethod
    def read(cls, evaluation: Artifact[EvaluationFacts]) -> "DocumentScores":
        """Those of an evaluation.

        Raises:
            ArtifactError: They are missing or damaged, or are not those of its scores.
        """
        if DOCUMENTS_NAME not in {entry.path for entry in evaluation.manifest.files}:
            raise ArtifactError(
                f"{evaluation.uri}: was made by an earlier version, which kept no scores of single documents; evaluate "
                "again"
            )
        positions = evaluation.facts.protocol.get("positions", 0)
        size = evaluation.entry(DOCUMENTS_NAME).size
        if not isinstance(positions, int) or size > min(_FILE_BYTES + _ROW_BYTES * positions, _LARGEST_FILE):
            raise evaluation.damaged(DOCUMENTS_NAME, f"too large for the scores of {positions} positions")
        data = evaluation.open(DOCUMENTS_NAME)
        try:
            scores = _read(pq.ParquetFile(data, page_checksum_verification=True), positions)
        except Exception as error:  # Arrow has several kinds for damage
            if is_damage(error):
                raise evaluation.damaged(DOCUMENTS_NAME, "no scores of documents") from None
            if isinstance(error, ValueError):
                raise evaluation.damaged(DOCUMENTS_NAME, str(error)) from None
            raise
        told = [evaluation.facts.brier[str(n)].value for n in range(1, MAX_N + 1)]
        if scores.positions != positions or not np.allclose(scores.mean_T, told, rtol=ROUNDING, atol=ROUNDING):
            raise evaluation.damaged(DOCUMENTS_NAME, "its sums are not those of the evaluation's scores")
        return scores


def _column(values: npt.NDArray[Any], type_: pa.DataType) -> pa.Array:
    flat = np.ascontiguousarray(values, dtype=type_.to_pandas_dtype())
    return pa.Array.from_buffers(type_, len(flat), [None, pa.py_buffer(flat)])


def _read(file: pq.ParquetFile, positions: int) -> DocumentScores:
    """The scores of a file that came from anywhere.

    Args:
        file: The file.
        positions: How many positions were scored, which no more documents than that can hold.

    Raises:
        ValueError: They cannot be so.
    """
    metadata = file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    compressions = {group.column(number).compression for group in groups for number in range(group.num_columns)}
    if compressions != {"UNCOMPRESSED"} or not 0 < metadata.num_rows <= positions:
        raise ValueError(f"{metadata.num_rows:,} documents of {positions:,} positions, or compressed ones")
    if file.schema_arrow != _SCHEMA:
        raise ValueError("no scores of documents")
    table = file.read(use_threads=False)
    documents, counts, *sums = (_values(column) for column in table.columns)
    sums_DT = np.stack(sums, axis=1)
    if documents[0] < 0 or (np.diff(documents) <= 0).any():
        raise ValueError("its documents are in no order")
    if counts.min() < 1 or counts.max() > positions:
        raise ValueError("a document has no positions, or more than there are")
    if not np.isfinite(sums_DT).all() or (np.abs(sums_DT) > _LARGEST_TERM * counts[:, None]).any():
        raise ValueError("a sum cannot be one of Brier terms")
    return DocumentScores(documents.astype(np.int64), counts.astype(np.float64), sums_DT)


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    values = column.combine_chunks()  # `to_numpy` would import pandas
    array = np.frombuffer(values.buffers()[1], values.type.to_pandas_dtype())
    return array[values.offset :][: len(values)]
