"""The evaluation stage on a model of a few steps."""

import re
import shutil
from pathlib import Path

import pytest

from calm_core.config import EvaluationConfig
from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.protocol import require_same_protocol
from calm_core.evaluation.stage import evaluate
from calm_core.store.artifact import Artifact, ArtifactWriter

CONFIG = EvaluationConfig(samples=3, max_sequences=6, batch_size=4, prompts=("the river",), prompt_tokens=5)


def evaluate_calm(
    dataset_uri: str, model_uris: tuple[str, str], output: Path, config: EvaluationConfig = CONFIG
) -> Artifact:
    autoencoder, calm = model_uris
    return evaluate(config, dataset_uri, calm, str(output), seed=0, autoencoder_uri=autoencoder)


@pytest.fixture(scope="module")
def evaluation(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return evaluate_calm(dataset_uri, model_uris, tmp_path_factory.mktemp("evaluation"))


def test_every_number_has_its_interval_and_its_protocol(evaluation: Artifact) -> None:
    results = evaluation.manifest.results
    assert list(results["brier"]) == ["1", "2", "3", "4"]
    for estimate in [results["brierlm"], *results["brier"].values()]:
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert set(results["references"]) == {"untrained", "unigram"}
    protocol = results["protocol"]
    assert protocol["samples"] == 3 and protocol["sequences"] == 6 and protocol["sequence_length"] == 32
    assert protocol["positions"] <= 6 * 7  # 8 chunks a sequence, the first is never predicted
    assert protocol["dataset"] == evaluation.manifest.parents["dataset"]


def test_scores_and_report_repeat_byte_for_byte_in_any_batch_size(
    evaluation: Artifact, dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    again = evaluate_calm(dataset_uri, model_uris, tmp_path / "again")
    assert again.digest == evaluation.digest
    assert again.read("report.html") == evaluation.read("report.html")
    smaller = evaluate_calm(dataset_uri, model_uris, tmp_path / "smaller", CONFIG.model_copy(update={"batch_size": 1}))
    assert smaller.manifest.results == evaluation.manifest.results


def test_the_report_needs_nothing_from_outside(evaluation: Artifact) -> None:
    html = evaluation.read("report.html").decode()
    assert html.count('src="data:image/png;base64,') == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "the river" in html


def test_a_model_of_another_autoencoder_is_refused(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_uris[0], other)
    original = Artifact(str(other), "autoencoder")
    files = {entry.path: original.read(entry.path) for entry in original.manifest.files}
    with ArtifactWriter(str(other), "autoencoder", original.manifest.config, {"dataset": "another"}) as writer:
        writer.results |= original.manifest.results
        for path, data in files.items():
            writer.write(path, data)
    with pytest.raises(ArtifactError, match="was trained on another autoencoder"):
        evaluate_calm(dataset_uri, (str(other), model_uris[1]), tmp_path / "out")


def test_the_baseline_is_scored_at_the_same_positions_and_can_be_compared(
    evaluation: Artifact, dataset_uri: str, transformer_uri: str, tmp_path: Path
) -> None:
    baseline = evaluate(CONFIG, dataset_uri, transformer_uri, str(tmp_path / "baseline"), seed=0)
    require_same_protocol([evaluation, baseline])
    assert baseline.manifest.results["references"]["unigram"] == evaluation.manifest.results["references"]["unigram"]


def test_scores_of_different_protocols_are_not_compared(
    evaluation: Artifact, dataset_uri: str, transformer_uri: str, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"position_interval": 1})
    baseline = evaluate(config, dataset_uri, transformer_uri, str(tmp_path / "baseline"), seed=0)
    with pytest.raises(CalmError, match="position_interval 4 against 1"):
        require_same_protocol([evaluation, baseline])


def test_positions_inside_a_chunk_are_refused(dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"position_interval": 6})
    with pytest.raises(CalmError, match=r"position_interval \(6\) must be a multiple of K \(4\)"):
        evaluate_calm(dataset_uri, model_uris, tmp_path / "out", config)
