"""The short texts that Kubeflow shows, and the page of one training."""

from pathlib import Path

from calm_core.report.cards import data_card, decision_card
from calm_core.report.training import curves_of, numbers, training_page
from calm_core.store.artifact import Artifact
from calm_core.store.facts import CalmFacts
from tests.report.pages import dataset, registration, write_run


def test_the_data_card_accounts_for_every_document_and_what_comes_from_outside_does_nothing() -> None:
    card = data_card(dataset())
    for line in (
        "**50** of 60 documents, **120** tokens",
        "- exact duplicates, left out: 5",
        "- rejected, ` broken <JSON> `: 3",
        "- from 1 file: ` s3://***@",
    ):
        assert line in card
    assert "word" not in card and "s3://***@bucket" in card


def test_the_decision_says_what_became_of_the_version_and_by_which_rules() -> None:
    card = decision_card(registration(promoted=False))
    assert card.startswith("**calm version 4 is not champion**")
    assert "against version 3, the champion, on the same 16 documents: +1.32 [0.41, 2.20], p = 0.004" in card
    assert "` significance ` is **not met**" in card


def test_a_trainings_page_has_its_curve_and_its_numbers(tmp_path: Path) -> None:
    model = Artifact(write_run(tmp_path)["calm"], CalmFacts)
    assert list(curves_of(model)) == [("calm: loss", "loss")]
    page = training_page(model)
    assert "training from 2 to 1, validation from 1.5 to 1.5" in page and "3,851,072 parameters" in page
    assert "<h2>On held-out text</h2>" in page
    assert numbers(model) | {"validation_loss": 1.5, "parameters": 3_851_072} == numbers(model)
