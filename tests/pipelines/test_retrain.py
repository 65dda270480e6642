"""`calm retrain` on one home: first text, none new, more text, killed in the middle, two at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calm_core.evaluation.documents import DocumentScores
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, DatasetFacts, EvaluationFacts, RegistrationFacts
from tests.pipelines.test_local_run import PROFILE, Workplace, document, last_states

ARGUMENTS = ("retrain", "--profile", str(PROFILE), "--source", "*.jsonl", "--set", "retraining.start=champion")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("retrain"))
    place.write("a.jsonl", [document(number) for number in range(40)])
    return place


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> subprocess.CompletedProcess[str]:
    return workplace.calm(*ARGUMENTS)


@pytest.fixture(scope="module")
def second(first: subprocess.CompletedProcess[str], workplace: Workplace) -> subprocess.CompletedProcess[str]:
    """With 20 more documents, and 10 that are known."""
    workplace.write("b.jsonl", [document(number) for number in range(30, 60)])
    return workplace.calm(*ARGUMENTS)


def test_the_first_text_makes_a_champion(first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    told = "no version of calm tells its dataset: all text is new; from scratch, since there is no champion"
    assert first.stdout.splitlines()[0] == told
    assert first.stdout.splitlines()[-1] == "calm version 1: champion, since there was none"


ASK = """
import sys
from calm_cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ending:
    print(ending.code, "torch" in sys.modules, "deepspeed" in sys.modules)
"""


def test_without_new_text_it_ends_without_torch_or_a_run(
    first: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    runs = sorted(workplace.folder.glob(".calm/logs/*"))
    asked = subprocess.run(
        [sys.executable, "-c", ASK, *ARGUMENTS],
        cwd=workplace.folder,
        env=workplace.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (asked.stdout, asked.stderr) == ("no new data since calm version 1\n3 False False\n", "")
    assert sorted(workplace.folder.glob(".calm/logs/*")) == runs
    assert workplace.calm(*ARGUMENTS).returncode == 3


def test_new_text_makes_a_challenger_that_is_judged_against_the_champion(
    first: subprocess.CompletedProcess[str], second: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    assert second.returncode == 0, second.stdout + second.stderr
    first_line = second.stdout.splitlines()[0]
    assert first_line.startswith("new since calm version 1: file:///") and "b.jsonl" in first_line
    assert first_line.endswith("; from the weights of models:/calm/1")
    uris = workplace.outputs()
    dataset = Artifact(uris["dataset"], DatasetFacts)
    assert (dataset.facts.documents_out, dataset.facts.duplicates) == (60, 10)
    evaluation = Artifact(uris["evaluation_report"], EvaluationFacts)
    assert evaluation.manifest.parents["dataset"] == dataset.digest
    decision = Artifact(uris["registration"], RegistrationFacts).facts
    assert (decision.version, decision.champion) == ("2", "1")
    assert decision.comparison is not None  # on the same documents, which version 1 had not seen scored
    assert decision.comparison.documents == len(DocumentScores.read(evaluation).documents_D)
    assert second.stdout.splitlines()[-1] == f"calm version 2: {decision.reason}"


def test_it_goes_on_from_the_champions_weights(second: subprocess.CompletedProcess[str], workplace: Workplace) -> None:
    uris = workplace.outputs()
    models = (Artifact(uris["autoencoder_model"], AutoencoderFacts), Artifact(uris["calm_model"], CalmFacts))
    for model in models:
        assert model.manifest.config["initial_weights"] == "models:/calm/1"
        assert "initial_weights" in model.manifest.parents


def test_one_that_is_killed_is_finished_by_the_next_and_nobody_works_beside_it(
    second: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    workplace.write("c.jsonl", [document(number) for number in range(60, 90)])
    with subprocess.Popen(
        workplace.command(*ARGUMENTS),
        cwd=workplace.folder,
        env=workplace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        while not (line := run.stdout.readline()).startswith("train-autoencoder: running"):
            assert line, "it has ended"
        beside = retrained(workplace)
        assert beside.returncode == 1
        [line] = beside.stderr.splitlines()
        assert f"another `calm run` is at work here (process {run.pid}); wait for it" in line
        while not (line := run.stdout.readline()).startswith("train-calm: running"):
            assert line, "it has ended"
        os.killpg(run.pid, signal.SIGKILL)
    until = time.monotonic() + 120
    while (next_ := retrained(workplace)).returncode == 1 and "at work here" in next_.stderr:
        assert time.monotonic() < until, "its processes have not ended"
        time.sleep(0.5)
    assert next_.returncode == 0, next_.stdout + next_.stderr
    states = last_states(next_.stdout)
    assert (states["prepare"], states["train-autoencoder"]) == ("cached", "cached")
    assert next_.stdout.splitlines()[-1].startswith("calm version 3: ")
    assert retrained(workplace).returncode == 3


def retrained(workplace: Workplace) -> subprocess.CompletedProcess[str]:
    """As `Workplace.calm`, beside another one or after one that was killed, which have temporary files there."""
    command, environment = workplace.command(*ARGUMENTS), workplace.environment
    return subprocess.run(command, cwd=workplace.folder, env=environment, capture_output=True, text=True, check=False)


def test_where_the_dataset_is_gone_it_begins_with_all_text(
    second: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    """Stopped once that has been told: what follows is as with the first text."""
    for folder in Path(workplace.folder).glob(".calm/pipeline/*/merge-partitions*"):
        shutil.rmtree(folder)
    with subprocess.Popen(
        workplace.command(*ARGUMENTS),
        cwd=workplace.folder,
        env=workplace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        told = run.stdout.readline()
        while not (line := run.stdout.readline()).startswith("prepare: done"):
            assert line, run.communicate()
        run.terminate()
    assert "is gone, so all text is new (" in told
    assert told.rstrip().endswith("has another tokenizer")
    assert "90 documents" in line
