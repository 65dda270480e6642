"""The model card: what it tells, that it fits into MLflow, and that nothing from outside acts in it."""

import re
from copy import copy
from typing import Any

import pytest
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

from calm_core.registry.card import LONGEST, model_card
from calm_core.store.artifact import Artifact
from calm_core.store.facts import (
    Accuracy,
    AutoencoderFacts,
    AutoencoderQuality,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    SourceFile,
    TrainingCost,
)

REPORT = f"runs:/{0:032x}/model/data/model/evaluation/report.html"
EVIL = "</code>`` ``` \n# [free](javascript:alert) <img src=x onerror=alert(1)> | **b** \x1b[31m"


@pytest.fixture(scope="module")
def artifacts(dataset_uri: str, model_uris: tuple[str, str], evaluation_uri: str) -> dict[str, Artifact[Any]]:
    autoencoder, calm = model_uris
    return {
        "evaluation": Artifact(evaluation_uri, EvaluationFacts),
        "calm": Artifact(calm, CalmFacts),
        "autoencoder": Artifact(autoencoder, AutoencoderFacts),
        "dataset": Artifact(dataset_uri, DatasetFacts),
    }


def changed(artifact: Artifact[Facts], **facts: Any) -> Artifact[Facts]:
    """An artifact that says something else."""
    other = copy(artifact)
    other.facts = artifact.facts.model_copy(update=facts)
    return other


def test_it_tells_what_the_model_is_how_good_and_where_from(artifacts: dict[str, Artifact[Any]]) -> None:
    card = model_card("calm", REPORT, **artifacts)
    evaluation, data = artifacts["evaluation"].facts, artifacts["dataset"].facts
    for name, score in evaluation.shown().items():
        assert name in card and f"{score.value:z.2f} {score.interval()}" in card
    assert f"{100 * evaluation.autoencoder_accuracy:.2f} % of the tokens" in card
    assert f"{data.documents_in} documents: {data.documents_out} stayed" in card
    assert f"{data.splits['train'].tokens:,} tokens of {data.splits['train'].documents} documents" in card
    assert "- from 1 file: `" in card and "texts.jsonl`" in card and REPORT in card
    assert "licence of the texts is not recorded" in card and "energy not measured" in card
    for artifact in artifacts.values():
        assert artifact.digest in card
    assert card == model_card("calm", REPORT, **artifacts)


def test_without_the_dataset_it_says_so(artifacts: dict[str, Artifact[Any]]) -> None:
    card = model_card("calm", REPORT, **{name: each for name, each in artifacts.items() if name != "dataset"})
    assert "The data were not named" in card and "documents" not in card


def test_what_is_measured_is_told(artifacts: dict[str, Artifact[Any]]) -> None:
    costs = {
        "calm": TrainingCost(flops=1.5e15, tokens=10**9, seconds=7200, accelerator_seconds=57600, energy_joules=7.2e6)
    }
    quality = AutoencoderQuality(
        mean=Accuracy(tokens=1, chunks=1),
        sampled=Accuracy(tokens=0.5, chunks=0.25),
        under_noise=[],
        latent_size=8,
        active_dimensions=7,
        latent_std={},
        by_frequency=[],
    )
    evaluation = changed(artifacts["evaluation"], costs=costs, autoencoder=quality)
    card = model_card("calm", REPORT, **artifacts | {"evaluation": evaluation})
    assert "- `calm`: 2.00 h, 1,000,000,000 tokens, 1.5e+15 FLOPs, 16.00 h of accelerators, energy 2 kWh\n" in card
    assert "50.00 % of the tokens come back and 25.00 % of the chunks; 7 of 8 dimensions are active" in card


def outside_of_code(card: str) -> str:
    """The card without its code spans and blocks, by the rule of CommonMark: a span ends at a fence of equal length."""
    card = re.sub(r"^```.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", card)


def test_nothing_from_outside_acts_in_it(artifacts: dict[str, Artifact[Any]]) -> None:
    dataset = changed(
        artifacts["dataset"],
        sources=[SourceFile(uri=EVIL, size=1, digest="0"), SourceFile(uri="`", size=1, digest="1")],
        rejected={EVIL: 1},
    )
    evaluation = changed(artifacts["evaluation"], model=EVIL, costs={EVIL: TrainingCost()})
    card = model_card("ca`lm", REPORT, **artifacts | {"dataset": dataset, "evaluation": evaluation})
    text = outside_of_code(card)
    assert "img" in card and "\x1b" not in card
    assert not [each for each in ("img", "javascript", "free", "**", "`", "<") if each in text]
    assert len(re.findall(r"^#+ ", card, re.MULTILINE)) == len(
        re.findall(r"^#+ ", model_card("calm", REPORT, **artifacts), re.MULTILINE)
    )


def test_commands_of_a_model_with_an_odd_name_can_be_copied(artifacts: dict[str, Artifact[Any]]) -> None:
    card = model_card("my $(touch x) model", REPORT, **artifacts)
    assert "-m 'models:/my $(touch x) model/NUMBER'\n" in card
    assert "load_model('models:/my $(touch x) model/NUMBER')\n" in card


def test_the_longest_card_fits_into_mlflows_column(artifacts: dict[str, Artifact[Any]]) -> None:
    """PostgreSQL refuses a longer one, and so the version."""
    assert SqlModelVersion.description.type.length == LONGEST
    most, long = 2**53, "`" * 1000
    cost = TrainingCost(flops=1e300, tokens=most, seconds=1e9, accelerator_seconds=1e12, energy_joules=1e17)
    model = {"parameters": most, "vocab_size": 2**32}
    data = dict.fromkeys(("documents_in", "documents_out", "duplicates", "near_duplicates"), most)
    longest = {
        "evaluation": changed(artifacts["evaluation"], model=long, costs={f"{i}{long}": cost for i in range(9)}),
        "calm": changed(artifacts["calm"], **model, latent_size=2**20, chunk_size=2**20),
        "autoencoder": changed(artifacts["autoencoder"], **model),
        "dataset": changed(
            artifacts["dataset"],
            **data,
            rejected={f"{i}{long}": most for i in range(9)},
            sources=[SourceFile(uri=long, size=1, digest="0")] * 9,
        ),
    }
    assert len(model_card("`" * 250, REPORT, **longest)) <= LONGEST
