"""What manifests say, typed: refused when it is wrong, and read also in the form of earlier code."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from calm_core.errors import ArtifactError
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter, Manifest, digest_of
from calm_core.store.facts import (
    LENGTH_BINS,
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    DuplicatesFacts,
    EvaluationFacts,
    Facts,
    MixtureFacts,
    OutcomeFacts,
    RegistrationFacts,
    ScanFacts,
    ShardsFacts,
    TokenizerFacts,
    TransformerFacts,
)

SCAN = {"partition": 0, "documents": 3, "text_bytes": 9, "normalized": 0, "rejected": {"empty": 1}}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    with ArtifactWriter(str(tmp_path), ScanFacts, {}, {}) as writer:
        writer.facts = ScanFacts.model_validate(SCAN | {"reject_examples": ["a.txt:0: empty"]})
    return tmp_path / MANIFEST_NAME


def changed(manifest: Path, **parts: Any) -> None:
    """Edit a manifest as somebody does who knows of its checksum."""
    content = json.loads(manifest.read_text())
    for part, values in parts.items():
        content[part] = content[part] | values if isinstance(values, dict) else values
    content["checksum"] = digest_of({name: value for name, value in content.items() if name != "checksum"})
    manifest.write_text(json.dumps(content))


def test_numbers_and_origins_lie_apart_and_come_back_together(scan: Path) -> None:
    manifest = Manifest.read(str(scan.parent))
    assert (manifest.results, manifest.origins) == (SCAN, {"reject_examples": ["a.txt:0: empty"], "portions": []})
    artifact = Artifact(str(scan.parent), ScanFacts)
    assert (artifact.facts.documents, artifact.facts.reject_examples) == (3, ["a.txt:0: empty"])


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"results": {"documents": -1}}, "documents: "),
        ({"results": {"documents": "three"}}, "documents: "),
        ({"results": {"rejected": {"empty": None}}}, "rejected.empty: "),
        ({"results": {"unheard": 1}}, "unheard: "),
        ({"timings": {"documents": 3}}, "timings.documents: "),  # in the wrong part: the digest would miss it
        ({"results": {"reject_examples": []}}, "results.reject_examples: "),
    ],
)
def test_wrong_facts_are_one_line_that_names_the_value(parts: dict[str, Any], named: str, scan: Path) -> None:
    changed(scan, **parts)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: damaged manifest \({named}") as caught:
        Artifact(str(scan.parent), ScanFacts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.0, 1.5, float("nan")])
def test_facts_are_checked_when_they_are_written_too(weight: float) -> None:
    with pytest.raises(ValidationError):
        MixtureFacts(weights=[weight], digests=["a"])


def test_every_kind_is_found_by_its_name(scan: Path) -> None:
    assert Facts.of_kind["scan"] is ScanFacts
    assert isinstance(Artifact.of_any_kind(str(scan.parent)).facts, ScanFacts)
    changed(scan, kind="unheard")
    with pytest.raises(ArtifactError, match="knows no artifacts of kind unheard; update it"):
        Artifact.of_any_kind(str(scan.parent))


HEADS_BEFORE = {
    "num_head_layers": 2, "noise_size": 8, "model_samples": 4, "target_samples": 16, "energy_alpha": 1.5,
    "diffusion_steps": 50, "sampling_steps": 6,
}  # fmt: skip


def first_version(folder: Path, kind: str, model: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """A manifest as the code before kinds of heads has written it."""
    content = {
        "kind": kind, "schema_version": 1, "config": {"steps": 3, "model": model, "seed": 0}, "parents": {},
        "code_version": "library-1", "timings": {"seconds": 1.0, "tokens_per_second": 2.0}, "origins": {}, "files": [],
        "results": {"parameters": 5, "vocab_size": 9, "pad_id": 0, "eos_id": 1, "trained_tokens": 7, **results},
    }  # fmt: skip
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(
    ("head", "own"),
    [
        ("energy", {"noise_size": 8, "target_samples": 16, "alpha": 1.5}),
        ("diffusion", {"diffusion_steps": 50, "sampling_steps": 6}),
        ("flow", {"sampling_steps": 6}),
    ],
)
def test_a_model_of_the_first_schema_version_is_read(head: str, own: dict[str, Any], tmp_path: Path) -> None:
    """Registered models hold such manifests. The digest is that of the manifest as it is stored."""
    metric = f"{head}_loss"
    results = {"chunk_size": 4, "latent_size": 8, f"validation_{metric}": 2.5, "curve": metric, "headline": "loss 2.5"}
    content = first_version(tmp_path, "calm", {"hidden_size": 16, "head": head, **HEADS_BEFORE}, results)
    calm = Artifact(str(tmp_path), CalmFacts)
    assert calm.manifest.schema_version == CalmFacts.schema_version == 5
    shared = {"kind": head, "num_layers": 2, "model_samples": 4}
    assert calm.manifest.config["model"] == {"hidden_size": 16, "head": shared | own}
    assert (calm.facts.validation, calm.facts.chunk_size) == ({metric: 2.5}, 4)
    digested = {key: content[key] for key in ("kind", "schema_version", "config", "parents", "results", "files")}
    assert calm.digest == digest_of(digested)


def test_an_imported_autoencoder_of_the_first_schema_version_is_read(tmp_path: Path) -> None:
    first_version(tmp_path, "autoencoder", {"hidden_size": 16}, {"tied": []})
    facts = Artifact(str(tmp_path), AutoencoderFacts).facts
    assert (facts.tied, facts.validation, facts.tokens_per_second) == ([], {}, 2.0)


def test_a_model_of_the_second_schema_version_is_read(tmp_path: Path) -> None:
    """It lacked nothing but the checksum."""
    content = first_version(tmp_path, "transformer", {"hidden_size": 16}, {"validation": {"cross_entropy": 2.5}})
    content["schema_version"] = 2
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    transformer = Artifact(str(tmp_path), TransformerFacts)
    assert (transformer.facts.validation, transformer.manifest.config) == ({"cross_entropy": 2.5}, content["config"])
    for version in (0, -1):
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(content | {"schema_version": version}))
        with pytest.raises(ArtifactError, match=r"schema_version: "):
            Artifact(str(tmp_path), TransformerFacts)


def test_a_model_of_the_third_schema_version_does_not_say_what_went_wrong(tmp_path: Path) -> None:
    content = first_version(tmp_path, "transformer", {"hidden_size": 16}, {"validation": {"cross_entropy": 2.5}})
    content["schema_version"] = 3
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content | {"checksum": digest_of(content)}))
    facts = Artifact(str(tmp_path), TransformerFacts).facts
    assert (facts.validation, facts.skipped_steps, facts.rewinds) == ({"cross_entropy": 2.5}, None, None)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="damaged manifest"):  # it had a checksum already
        Artifact(str(tmp_path), TransformerFacts)


def split(name: str, documents: int) -> dict[str, Any]:
    return {
        "documents": documents,
        "sequences": 5,
        "tokens": 38,
        "padding": 2,
        "text_bytes": 50,
        "document_lengths": [0, 0, documents, *[0] * (LENGTH_BINS - 3)],
        "shards": [{"path": f"{name}/0.parquet", "rows": 4}, {"path": f"{name}/1.parquet", "rows": 1}],
    }


VOCABULARY = {"vocab_size": 300, "pad_id": 0, "eos_id": 299}
SCORE = {"value": 10.0, "low": 9.0, "high": 11.0}
SCORES = {"brierlm": SCORE, "brier": {n: {"value": 0.1, "low": 0.0, "high": 0.2} for n in ("1", "2", "3", "4")}}
GOOD: dict[type[Facts], dict[str, Any]] = {
    ScanFacts: SCAN,
    DuplicatesFacts: {"duplicates": 1, "near_duplicates": 2},
    TokenizerFacts: VOCABULARY | {"engine": "tiktoken"},
    ShardsFacts: {"partition": 0, "train": split("train", 6), "validation": split("validation", 3)},
    DatasetFacts: VOCABULARY
    | {"engine": "tiktoken", "documents_in": 14, "documents_out": 9, "duplicates": 1, "near_duplicates": 2}
    | {"rejected": {"empty": 2}, "normalized": 0, "text_bytes": 120, "sequence_length": 8, "document_alignment": 4}
    | {"rows_per_group": 4, "partitions": 2, "splits": {n: split(n, d) for n, d in (("train", 6), ("validation", 3))}},
    MixtureFacts: {"weights": [0.25, 0.75], "digests": ["0" * 64, "a" * 64], "datasets": ["a", "b"]},
    AutoencoderFacts: VOCABULARY | {"parameters": 5},
    CalmFacts: VOCABULARY | {"parameters": 5, "chunk_size": 4, "latent_size": 8},
    TransformerFacts: VOCABULARY | {"parameters": 5, "trained_tokens": 0, "validation": {"cross_entropy": 0.5}},
    OutcomeFacts: {"message": "done", "exit_code": 0},
    EvaluationFacts: SCORES
    | {"model": "CALM", "protocol": {"split": "validation"}, "references": {"untrained": SCORES, "unigram": SCORES}}
    | {"samples": []},
    RegistrationFacts: {"model_name": "calm", "version": "1", "alias": "a", "model_uri": "models:/calm/1"},
}


@pytest.mark.parametrize("kind", GOOD)
def test_each_kind_is_read_as_it_is_written(kind: type[Facts], tmp_path: Path) -> None:
    facts = kind.model_validate(GOOD[kind])
    with ArtifactWriter(str(tmp_path), kind, {}, {}) as writer:
        for path in facts.paths:
            writer.write(path, b"")
        writer.facts = facts
    assert Artifact(str(tmp_path), kind).facts == facts


BAD: list[tuple[type[Facts], str, Any]] = [
    (ScanFacts, "documents", 10**30),
    (ScanFacts, "documents", True),
    (ScanFacts, "documents", "3"),
    (ScanFacts, "normalized", 4),
    (DuplicatesFacts, "duplicates", 0.5),
    (TokenizerFacts, "pad_id", None),
    (TokenizerFacts, "pad_id", 300),
    (TokenizerFacts, "vocab_size", 100),
    (TokenizerFacts, "vocab_size", 10**12),
    (ShardsFacts, "train.shards.0.rows", -1),
    (ShardsFacts, "train.shards.0.rows", 5),
    (ShardsFacts, "train.shards.0.path", "../x"),
    (ShardsFacts, "train.shards.1.path", "train/0.parquet"),
    (ShardsFacts, "train.sequences", 6),
    (ShardsFacts, "train.documents", 7),
    (ShardsFacts, "train.document_lengths", [6]),
    (DatasetFacts, "splits.train.tokens", 39),
    (DatasetFacts, "splits.validation.padding", 10**12),
    (DatasetFacts, "splits.validation.shards.0.path", "train/0.parquet"),
    (DatasetFacts, "splits.test", split("test", 0)),
    (DatasetFacts, "sequence_length", 9),
    (DatasetFacts, "documents_in", 15),
    (DatasetFacts, "documents_out", 8),
    (DatasetFacts, "rejected.empty", 3),
    (DatasetFacts, "text_bytes", 99),
    (MixtureFacts, "weights", [0.25, 0.7]),
    (MixtureFacts, "weights", []),
    (MixtureFacts, "weights", [0.25, 0.25, 0.5]),
    (MixtureFacts, "digests.0", "../x"),
    (AutoencoderFacts, "eos_id", 300),
    (AutoencoderFacts, "parameters", -1),
    (CalmFacts, "chunk_size", 10**9),
    (TransformerFacts, "validation.cross_entropy", float("inf")),
    (TransformerFacts, "validation", None),
    (OutcomeFacts, "exit_code", 256),
    (EvaluationFacts, "brierlm.value", 12.0),
    (EvaluationFacts, "references.unigram.brierlm.value", 9.0),
    (EvaluationFacts, "brier.2.value", 0.11),
    (EvaluationFacts, "brierlm.low", 11.5),
    (EvaluationFacts, "brier", {}),
    (EvaluationFacts, "brier", {n: SCORES["brier"][n] for n in "123"}),  # of the same mean
    (RegistrationFacts, "version", "latest"),
    (RegistrationFacts, "model_uri", "models:/evil/1"),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD)
def test_facts_that_cannot_be_so_are_refused(kind: type[Facts], name: str, value: Any, tmp_path: Path) -> None:
    """Also where the manifest's checksum is right."""
    good = kind.model_validate(GOOD[kind])
    with ArtifactWriter(str(tmp_path), kind, {}, {}) as writer:
        for path in good.paths:
            writer.write(path, b"")
        writer.facts = good
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    *places, last = name.split(".")
    inner = content["results"]
    for place in places:
        inner = inner[int(place) if isinstance(inner, list) else place]
    inner[int(last) if isinstance(inner, list) else last] = value
    changed(tmp_path / MANIFEST_NAME, results=content["results"])
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged manifest \(") as caught:
        Artifact(str(tmp_path), kind)
    assert "\n" not in str(caught.value)


def test_facts_name_only_files_of_the_manifest(tmp_path: Path) -> None:
    with ArtifactWriter(str(tmp_path), ShardsFacts, {}, {}) as writer:
        writer.facts = ShardsFacts.model_validate(GOOD[ShardsFacts])
    with pytest.raises(ArtifactError, match=r"damaged manifest \(files: lacks train/0\.parquet\)"):
        Artifact(str(tmp_path), ShardsFacts)
