"""The table of mistakes: each costs one line, before anything is done."""

import shutil
from pathlib import Path

import pytest

from tests.cli.mistakes import commands, looking, outputs, registry, running, settings, sources, tracking, training
from tests.cli.mistakes.frame import Mistake, check

TABLES = (commands, looking, outputs, registry, running, settings, sources, tracking, training)
MISTAKES = [mistake for table in TABLES for mistake in table.MISTAKES]


@pytest.fixture
def artifacts(
    dataset_uri: str, model_uris: tuple[str, str], transformer_uri: str, evaluation_uri: str, tmp_path: Path
) -> dict[str, str]:
    """Copies of small artifacts, by kind, outside of the current folder."""
    autoencoder, calm = model_uris
    uris = {
        "dataset": dataset_uri,
        "autoencoder": autoencoder,
        "calm": calm,
        "transformer": transformer_uri,
        "evaluation": evaluation_uri,
    }
    return {kind: shutil.copytree(uri, str(tmp_path / "artifacts" / kind)) for kind, uri in uris.items()}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_costs_one_line(
    mistake: Mistake,
    artifacts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    check(mistake, folder, artifacts, monkeypatch, capfd)


def test_names_are_unique() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(names) == len(set(names))
