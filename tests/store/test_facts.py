"""What manifests say, typed: refused when it is wrong, and read also in the form of earlier code."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from calm_core.errors import ArtifactError
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter, Manifest, digest_of
from calm_core.store.facts import AutoencoderFacts, CalmFacts, Facts, MixtureFacts, ScanFacts

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
    assert (manifest.results, manifest.origins) == (SCAN, {"reject_examples": ["a.txt:0: empty"]})
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
    shared = {"kind": head, "num_layers": 2, "model_samples": 4}
    assert calm.manifest.config["model"] == {"hidden_size": 16, "head": shared | own}
    assert (calm.facts.validation, calm.facts.chunk_size) == ({metric: 2.5}, 4)
    digested = {key: content[key] for key in ("kind", "schema_version", "config", "parents", "results", "files")}
    assert calm.digest == digest_of(digested)


def test_an_imported_autoencoder_of_the_first_schema_version_is_read(tmp_path: Path) -> None:
    first_version(tmp_path, "autoencoder", {"hidden_size": 16}, {"tied": []})
    facts = Artifact(str(tmp_path), AutoencoderFacts).facts
    assert (facts.tied, facts.validation, facts.tokens_per_second) == ([], {}, 2.0)
