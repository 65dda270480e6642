"""Which of several real registrations becomes champion, and why; most have scores that are made up."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from calm_core.config import AutoencoderConfig, CalmConfig, EvaluationConfig, RegistryConfig
from calm_core.errors import CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.registry import evidence
from calm_core.registry.aliases import DECISION_TAG
from calm_core.registry.stage import register_model
from calm_core.store.facts import RegistrationFacts
from calm_core.training.stage import train
from tests.registry.made_up_scores import scored_otherwise

pytestmark = pytest.mark.usefixtures("in_a_folder_with_a_store")


class Registrations:
    """Registrations of one model, each with scores of its own."""

    def __init__(self, name: str, calm_uri: str, evaluation_uri: str, folder: Path) -> None:
        self.name, self._calm, self._evaluation, self._folder = name, calm_uri, evaluation_uri, folder
        self._count = 0

    def add(self, brierlm: float, rules: dict[str, Any] | None = None, **scores: Any) -> RegistrationFacts:
        self._count += 1
        output = self._folder / f"evaluation-{self._count}"
        uri = scored_otherwise(self._evaluation, brierlm, output, seed=self._count, **scores)
        return self.register(uri, rules)

    def register(self, evaluation_uri: str, rules: dict[str, Any] | None = None, **inputs: str) -> RegistrationFacts:
        config = RegistryConfig.model_validate({"model_name": self.name, **(rules or {})})
        output = str(self._folder / f"registration-{len(list(self._folder.iterdir()))}")
        return register_model(config, self._calm, evaluation_uri, output, **inputs).facts


@pytest.fixture
def registrations(
    request: pytest.FixtureRequest, model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> Registrations:
    return Registrations(request.node.name, model_uris[1], evaluation_uri, tmp_path)


def test_rules_hold_for_registrations(registrations: Registrations) -> None:
    floor = {"min_autoencoder_accuracy": 0.8}
    assert "less than 80%" in registrations.add(20.0, floor, accuracy=0.7).reason
    assert registrations.add(20.0, floor).reason == "champion, since there was none"
    falls = registrations.add(25.0, floor | {"max_regression": {"autoencoder_accuracy": 0.01}}, accuracy=0.85)
    assert falls.reason.endswith("since this one changes autoencoder accuracy by -5 points, and may lose 1")
    assert falls.comparison and falls.comparison.brierlm.value == pytest.approx(5.0)
    assert falls.champion_uri == f"models:/{registrations.name}/2"
    strict = registrations.add(20.1, {"significance": 0.001})
    assert not strict.promoted and [check.passed for check in strict.checks if check.rule == "significance"] == [False]
    other = registrations.add(25.0, tokenizer="b" * 64, dataset="c" * 64)
    assert not other.promoted and "has another tokenizer (sha256 bbbbbbbbbbbb…" in other.reason


def test_scores_on_other_text_are_not_compared_without_it(registrations: Registrations) -> None:
    registrations.add(20.0)
    kept = registrations.add(25.0, dataset="c" * 64, samples=64)
    assert not kept.promoted and kept.comparison is None
    assert "which was scored with another dataset, samples; name the dataset of the evaluation" in kept.reason


def test_a_champion_that_was_scored_otherwise_is_scored_on_the_dataset(
    registrations: Registrations, dataset_uri: str, evaluation_uri: str
) -> None:
    registrations.add(20.0)
    decided = registrations.register(evaluation_uri, dataset_uri=dataset_uri)
    assert decided.comparison and decided.comparison.brierlm.value == 0  # it is the same model
    assert not decided.promoted and decided.comparison.brierlm.p_value == 1


def test_a_champion_of_earlier_code_is_scored_too(
    registrations: Registrations, dataset_uri: str, evaluation_uri: str
) -> None:
    first = registrations.add(20.0)
    client = mlflow.MlflowClient()
    files = Path(mlflow.artifacts.download_artifacts(first.model_uri))
    shutil.rmtree(files / "data/model/evaluation")
    for tag in client.get_model_version(registrations.name, "1").tags:
        client.delete_model_version_tag(registrations.name, "1", tag)
    without = registrations.register(evaluation_uri)
    assert "another version of this library, which kept no scores" in without.reason and without.comparison is None
    client.delete_model_version(registrations.name, without.version)
    assert registrations.register(evaluation_uri, dataset_uri=dataset_uri).comparison


def test_a_signature_that_breaks_callers_is_reported(
    registrations: Registrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ParamSchema

    from calm_core.registry import served

    registrations.add(20.0)
    fewer = ParamSchema([spec for spec in served.PARAMETERS if spec.name not in ("stop", "n")])
    monkeypatch.setattr(served, "SIGNATURE", ModelSignature(served.SIGNATURE.inputs, served.SIGNATURE.outputs, fewer))
    assert registrations.add(25.0).reason.endswith("since this one no longer takes stop, n")


def test_a_signature_that_cannot_be_read_now_is_not_taken_for_none(
    registrations: Registrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrations.add(20.0)

    def away(uri: str) -> Any:
        raise CalmError(f"{uri}: the storage does not answer", can_pass=True)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "registered_signature", away)
        with pytest.raises(CalmError, match="does not answer"):
            registrations.add(25.0)
    assert mlflow.MlflowClient().get_model_version_by_alias(registrations.name, "champion").version == 1


def test_what_was_interrupted_before_it_was_decided_is_decided_by_the_next_registration(
    registrations: Registrations,
) -> None:
    registrations.add(20.0)
    assert registrations.add(25.0, {"promote": "never"}).version == "2"
    client = mlflow.MlflowClient()
    client.set_model_version_tag(registrations.name, "2", DECISION_TAG, '{"state": "undecided"}')
    assert registrations.add(25.0).champion == "2"
    assert client.get_model_version_by_alias(registrations.name, "champion").version == 2


@pytest.mark.timeout(1200)  # nine processes, one after the other
def test_more_steps_win_fewer_do_not_and_equal_ones_change_nothing(dataset_uri: str, tmp_path: Path) -> None:
    """Models that are trained here: the first champion for two steps, and then others."""
    shape = {"hidden_size": 64, "intermediate_size": 96}
    training = {"warmup_steps": 1, "global_batch_size": 16, "micro_batch_size": 16, "learning_rate": 3e-3}

    def trained(name: str, config: Any, **inputs: str) -> str:
        places = {"checkpoint_root": str(tmp_path / f"{name} checkpoints"), **inputs}
        return train(config, dataset_uri, str(tmp_path / name), seed=0, **places).uri

    steps = {"steps": 120, "validation_interval": 120}
    model: dict[str, Any] = {"chunk_size": 2, "latent_size": 16, **shape}
    autoencoder = trained("autoencoder", AutoencoderConfig.model_validate(training | steps | {"model": model}))
    facts = []
    for number, steps_ in enumerate((2, 150, 1, 150)):
        # Equal ones differ in how often they tell of themselves, or they would be one version.
        steps = {"steps": steps_, "validation_interval": steps_, "log_interval": 100 + number}
        model = {"num_hidden_layers": 1, "num_attention_heads": 2, "head": {"kind": "flow"}, **shape}
        config = CalmConfig.model_validate(training | steps | {"model": model})
        calm = trained(f"calm-{number}", config, autoencoder_uri=autoencoder)
        protocol = EvaluationConfig(samples=8, prompts=(), temperature_samples=8)
        scores = evaluate(protocol, dataset_uri, calm, str(tmp_path / f"scores-{number}"), seed=0).uri
        output = str(tmp_path / f"registration-{number}")
        rules = RegistryConfig(model_name="trained")
        facts.append(register_model(rules, calm, scores, output, dataset_uri=dataset_uri).facts)
    first, more, fewer, equal = facts
    assert first.promoted and more.promoted and not fewer.promoted and not equal.promoted
    assert more.reason.startswith("champion instead of version 1: BrierLM +")
    stays = "champion stays with version 2, since this one is not better: BrierLM "
    assert fewer.reason.startswith(f"{stays}-") and equal.reason.startswith(f"{stays}+0.00")
    assert equal.version == "4" and equal.comparison and equal.comparison.p_value == 1
