"""Scores by document: which token is whose, sums, intervals, and the file that holds them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calm_core.data.preparing.packing import Packer
from calm_core.data.reading.dataset import open_dataset
from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.documents import DOCUMENTS_NAME, DocumentNumbers, DocumentScores, Stretches
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import EvaluationFacts

PAD, EOS, BOS, T = 0, 1, 2, 16


@pytest.mark.parametrize(("packing", "bos"), [("documents", None), ("documents", BOS), ("contiguous", BOS)])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_every_token_belongs_to_the_document_that_was_packed_there(packing: str, bos: int | None, batch: int) -> None:
    """Document 7 consists of tokens 17 and so on, so each token says itself whose it is."""
    numbers = np.random.default_rng(0)
    special = {"pad_id": PAD, "eos_id": EOS, "bos_id": bos}
    packer = Packer(sequence_length=T, block_rows=2, document_alignment=8, packing=packing, **special)  # type: ignore[arg-type]
    lengths = [1, *numbers.integers(1, 50, size=40).tolist()]  # in sequences of 16: some lie in four of them
    documents = [np.full(length, 10 + number, np.uint32) for number, length in enumerate(lengths)]
    rows = np.concatenate([*(b for d in documents for b in packer.push(d)), *packer.finish()]).astype(np.int64)
    dataset = SimpleNamespace(pad_id=PAD, eos_id=EOS, bos_id=bos, packing=packing)
    found = DocumentNumbers(dataset)  # type: ignore[arg-type]  # a stand-in
    places = [found.of(rows[start : start + batch]) for start in range(0, len(rows), batch)]
    document = np.concatenate([place.document_RT for place in places]).ravel()
    offset = np.concatenate([place.offset_RT for place in places]).ravel()
    flat = rows.ravel()
    assert (document[flat >= 10] == flat[flat >= 10] - 10).all()
    seen: dict[int, int] = {}
    for token, number, before in zip(flat.tolist(), document.tolist(), offset.tolist(), strict=True):
        if token != PAD:
            assert before == seen.get(number, 0)
            seen[number] = before + 1
    # EOS and BOS are a document's own tokens.
    whole = {number: length + packer.added for number, length in enumerate(lengths)}
    assert {n: whole[n] for n in list(seen)[:-1]} == {n: seen[n] for n in list(seen)[:-1]}


def test_where_nothing_marks_a_document_each_sequence_is_one() -> None:
    dataset = SimpleNamespace(pad_id=PAD, eos_id=EOS, bos_id=None, packing="contiguous")
    numbers = DocumentNumbers(dataset)  # type: ignore[arg-type]  # a stand-in
    numbers.of(np.full((2, 4), 9))
    places = numbers.of(np.full((2, 4), 9))
    assert places.document_RT.tolist() == [[2] * 4, [3] * 4]
    assert places.offset_RT.tolist() == [[0, 1, 2, 3]] * 2


def scores_of(row: list[int], document: list[int], terms: list[list[float]]) -> DocumentScores:
    return DocumentScores.of(Stretches.of(np.array(row), np.array(document), np.array(terms)))


def test_sums_are_of_whole_documents_wherever_batches_and_sequences_end() -> None:
    terms = np.random.default_rng(0).random((9, 4))
    document = np.array([2, 2, 3, 3, 3, 3, 7, 7, 9])
    row = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    scores = DocumentScores.of(Stretches.of(row, document, terms))
    assert scores.documents_D.tolist() == [2, 3, 7, 9]
    assert scores.counts_D.tolist() == [2, 4, 2, 1]
    np.testing.assert_allclose(scores.sums_DT[1], terms[2:6].sum(0))
    parts = [Stretches.of(row[row == r] - r, document[row == r], terms[row == r]) for r in range(4)]
    joined = DocumentScores.of(Stretches(*(np.concatenate(values) for values in zip(*parts, strict=True))))
    assert (joined.sums_DT == scores.sums_DT).all()  # to the bit


def test_positions_are_averaged_before_the_geometric_mean() -> None:
    """One document with perfect positions and one with none: 50 %, not the mean of 100 and 0 after the root."""
    one = [[1.0, 0.5, 0.25, 0.125]] * 3
    scores = scores_of([0] * 6, [0] * 3 + [1] * 3, one + [[0.0] * 4] * 3).scores(resamples=100, confidence=0.9, seed=0)
    assert scores.brierlm.value == pytest.approx(100 * (0.5 * 0.25 * 0.125 * 0.0625) ** 0.25)
    assert scores.brier["2"].value == 0.25


def test_of_no_position_there_is_no_score() -> None:
    with pytest.raises(CalmError, match="nothing to score"):
        DocumentScores.of(Stretches.of(np.array([], int), np.array([], int), np.zeros((0, 4))))


def test_of_one_document_there_is_no_interval() -> None:
    scores = scores_of([0, 0, 1], [4, 4, 4], [[0.5] * 4] * 3).scores(100, 0.95, 0)
    assert scores.brierlm.value == pytest.approx(50)
    for score in (scores.brierlm, *scores.brier.values()):
        assert (score.low, score.high, score.interval()) == (None, None, "[unknown]")


def test_an_evaluation_keeps_its_documents(evaluation_uri: str, dataset_uri: str) -> None:
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    scores = DocumentScores.read(evaluation)
    assert scores.positions == evaluation.facts.protocol["positions"]
    assert len(scores.documents_D) == evaluation.facts.protocol["documents"] > 1
    again = scores.scores(1000, 0.95, 0)
    assert (again.brierlm, again.brier) == (evaluation.facts.brierlm, evaluation.facts.brier)
    held_out = open_dataset(dataset_uri, "validation")
    ends = (held_out.rows(np.arange(16)) == held_out.eos_id).sum()  # of whole documents
    assert scores.documents_D[-1] in (ends - 1, ends)


def rewritten(evaluation_uri: str, folder: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> Any:
    """An evaluation whose documents have been changed by somebody who knows of checksums."""
    old = Artifact(evaluation_uri, EvaluationFacts)
    table = change(pq.read_table(old.open(DOCUMENTS_NAME)))
    with ArtifactWriter(str(folder), EvaluationFacts, old.manifest.config, old.manifest.parents) as writer:
        writer.facts = old.facts
        with writer.create(DOCUMENTS_NAME) as file:
            pq.write_table(table, pa.PythonFile(file, "w"), **({"compression": "none"} | options))
    return Artifact(str(folder), EvaluationFacts)


def with_column(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        place = table.schema.names.index(name)
        values = change(table.column(name).to_pylist())
        return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    return changed


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (with_column("brier_1", lambda v: [float("nan"), *v[1:]]), {}, "a sum cannot be one of Brier terms"),
        (with_column("brier_1", lambda v: [1e9, *v[1:]]), {}, "a sum cannot be one of Brier terms"),
        (with_column("brier_1", lambda v: [v[0] + 0.5, *v[1:]]), {}, "are not those of the evaluation's scores"),
        (with_column("positions", lambda v: [0, *v[1:]]), {}, "has no positions, or more than there are"),
        (with_column("positions", lambda v: [2**62, *v[1:]]), {}, "has no positions, or more than there are"),
        (with_column("positions", lambda v: [v[0] + 1, *v[1:]]), {}, "are not those of the evaluation's scores"),
        (with_column("document", lambda v: v[::-1]), {}, "its documents are in no order"),
        (with_column("document", lambda v: [-1, *v[1:]]), {}, "its documents are in no order"),
        (lambda table: table.slice(0, 0), {}, "0 documents of"),
        (lambda table: table.drop_columns(["brier_4"]), {}, "no scores of documents"),
        (lambda table: table.cast(pa.schema([f.with_nullable(True) for f in table.schema])), {}, "no scores of docum"),
        (lambda table: pa.concat_tables([table] * 50), {}, "documents of"),
        (lambda table: table, {"compression": "zstd"}, "or compressed ones"),
    ],
)
def test_documents_that_cannot_be_so_are_refused(
    change: Callable[[pa.Table], pa.Table], options: dict[str, Any], told: str, evaluation_uri: str, tmp_path: Path
) -> None:
    changed = rewritten(evaluation_uri, tmp_path / "out", change, **options)
    with pytest.raises(ArtifactError, match=rf"documents\.parquet: file is damaged \(.*{told}") as caught:
        DocumentScores.read(changed)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_parquet_or_is_missing_is_one_line(evaluation_uri: str, tmp_path: Path) -> None:
    old = Artifact(evaluation_uri, EvaluationFacts)
    for folder, data in (("text", b"no parquet"), ("long", b"x" * (1 << 20)), ("none", None)):
        with ArtifactWriter(str(tmp_path / folder), EvaluationFacts, {}, {}) as writer:
            writer.facts = old.facts
            if data:
                writer.write(DOCUMENTS_NAME, data)
    expected = {"text": "no scores of documents", "long": "too large for the scores", "none": "an earlier version"}
    for folder, told in expected.items():
        with pytest.raises(ArtifactError, match=told):
            DocumentScores.read(Artifact(str(tmp_path / folder), EvaluationFacts))
    shutil.copytree(evaluation_uri, tmp_path / "changed")
    (tmp_path / "changed" / DOCUMENTS_NAME).write_bytes(b"another")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        DocumentScores.read(Artifact(str(tmp_path / "changed"), EvaluationFacts))


def test_a_file_that_no_evaluation_is_so_large_as_is_refused_before_it_is_read(
    evaluation_uri: str, tmp_path: Path
) -> None:
    """However many positions are said to be in it: it would be held in memory."""
    shutil.copytree(evaluation_uri, tmp_path / "huge")
    with open(tmp_path / "huge" / DOCUMENTS_NAME, "wb") as file:
        file.truncate(10**13)
    manifest = Artifact(evaluation_uri, EvaluationFacts).manifest
    files = [e.model_copy(update={"size": 10**13}) if e.path == DOCUMENTS_NAME else e for e in manifest.files]
    protocol = {"protocol": manifest.results["protocol"] | {"positions": 10**15}}
    manifest = manifest.model_copy(update={"files": files, "results": manifest.results | protocol})
    manifest = manifest.model_copy(update={"checksum": manifest.own_checksum})
    (tmp_path / "huge" / "manifest.json").write_text(manifest.model_dump_json(exclude_unset=True))
    with pytest.raises(ArtifactError, match="too large for the scores of"):
        DocumentScores.read(Artifact(str(tmp_path / "huge"), EvaluationFacts))
