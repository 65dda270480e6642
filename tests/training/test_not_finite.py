"""Trainings on real ranks with numbers that are not finite: what is skipped, what ends, what is gone on from."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import CheckpointFacts, TransformerFacts
from calm_core.training import launcher
from tests.cli.test_main import call
from tests.training import not_finite_worker
from tests.training.not_finite_worker import FAULT_VARIABLE, SETTINGS, SHAPE, Case

GRADIENTS = {str(batch): ["gradient", "nan"] for batch in (5, 6, 7)}
REWINDS = Case("rewinds", {"rewinds": 1}, GRADIENTS)
CASES = [
    Case("survives", faults={"3": ["loss", "nan"], "5": ["gradient", "nan"], "6": ["loss", "inf"]}, empty=[9]),
    Case("loss", faults={batch: ["loss", "nan"] for batch in "567"}, rank=0),
    Case("validation", faults={"8": ["validation", "nan"]}),
    Case("huge", rates={"5": 1e30}),
    REWINDS,
    replace(REWINDS, name="stopped", stops=[3, 6, 9], kills=[5, 8]),
]
ONCE = [
    Case("last", faults={"12": ["gradient", "nan"]}),
    Case("infinite", rates={"6": 1e45}),
    Case("always", {"rewinds": 2}, {str(batch): ["loss", "nan"] for batch in range(5, 50)}),
    Case("validation-rewinds", {"rewinds": 1}, {"8": ["validation", "inf"]}),
    Case("all-at-once", {"rewinds": 1}, {str(batch): ["loss", "nan"] for batch in range(1, 4)}),
    Case(
        "spikes",
        {"rewinds": 1, "steps": 160, "log_interval": 40, "validation_interval": 80, "checkpoint_interval": 20},
        {str(batch): ["loss", "30"] for batch in (145, 150, 151, 152)},
    ),
]
"""Of what does not depend on how the ranks share the state."""
MODES: dict[int, dict[str, dict[str, Any]]] = {
    1: {"fp32": {}, "bf16": {"precision": "bf16"}},
    2: {
        **{f"zero{stage}": {"zero_stage": stage} for stage in (0, 2, 3)},
        "bf16": {"precision": "bf16", "zero_stage": 1},
    },
}
"""By the number of ranks, and name."""


def trained(cases: list[Case], ranks: int, dataset_uri: str, folder: Path) -> None:
    """Run the cases, all in one start of the ranks, each in its own folder."""
    for case in cases:
        (folder / case.name).mkdir()
    (folder / "cases.json").write_text(f"[{','.join(case.to_json() for case in cases)}]")
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            *command,
            "tests.training.not_finite_worker",
            folder / "cases.json",
            dataset_uri,
            folder,
        ],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        check=True,
    )


@pytest.fixture(scope="module", params=MODES)
def runs(
    request: pytest.FixtureRequest, dataset_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """The cases in each mode of so many ranks."""
    ranks, folder = request.param, tmp_path_factory.mktemp("faults")
    cases = [
        replace(case, name=f"{mode}-{case.name}", settings=case.settings | settings)
        for mode, settings in MODES[ranks].items()
        for case in CASES
    ]
    trained(cases, ranks, dataset_uri, folder)
    return ranks, folder


@pytest.fixture(scope="module")
def more(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("more")
    trained(ONCE, 1, dataset_uri, folder)
    return folder


def endings(folder: Path, rank: int = 0) -> list[tuple[int, str]]:
    return [(code, line) for code, line in json.loads((folder / f"endings-{rank}.json").read_text())]


def model(folder: Path) -> Artifact[TransformerFacts]:
    return Artifact(str(folder / "out"), TransformerFacts)


def checkpoints(folder: Path) -> dict[int, Artifact[CheckpointFacts]]:
    """Those that count, by step; all of their tensors have to be finite."""
    found = {
        int(path.name.partition("-")[2]): Artifact(str(path), CheckpointFacts) for path in folder.glob("job/step-*")
    }
    for artifact in found.values():
        files = [file.path for file in artifact.manifest.files if file.path.endswith(".safetensors")]
        tensors = [tensor for file in files for tensor in safetensors.torch.load(artifact.read(file)).values()]
        assert tensors
        assert all(tensor.isfinite().all() for tensor in tensors)
    return found


def curves(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in model(folder).read("curves.jsonl").splitlines()]


def test_steps_that_are_not_finite_are_left_out_counted_and_told(runs: tuple[int, Path]) -> None:
    ranks, root = runs
    for mode in MODES[ranks]:
        folder = root / f"{mode}-survives"
        [(code, line)] = endings(folder)
        assert code == 0
        assert re.fullmatch(r"validation cross entropy \d\.\d{4} \(3 of 12 steps bad, 3 skipped\)", line)
        facts = model(folder).facts
        assert (facts.bad_steps, facts.skipped_steps, facts.loss_spikes, facts.rewinds) == (3, 3, 0, 0)
        records = curves(folder)
        assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3]
        # What is not finite is no point of a curve, nor is what no token counts in. Where the gradient alone is wrong,
        # the loss is one.
        assert [record["step"] for record in records if "cross_entropy" not in record] == [3, 6, 9]
        assert all(math.isfinite(value) for record in records for value in record.values())
        assert checkpoints(folder).keys() == {10, 12}
        weights = safetensors.torch.load(model(folder).read("weights.safetensors"))
        assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    ("name", "what", "stands"),
    [
        ("loss", r"cross entropy is nan, gradient norm is (nan|inf) at steps 5 to 7", 4),
        ("validation", r"validation cross entropy is nan at step 8", 6),
        ("huge", r"(cross entropy is (nan|inf), )?gradient norm is (nan|inf) at steps 6 to 8", 4),
    ],
)
def test_too_many_end_the_training_and_the_last_good_checkpoint_stands(
    runs: tuple[int, Path], dataset_uri: str, name: str, what: str, stands: int
) -> None:
    ranks, root = runs
    for mode in MODES[ranks]:
        folder = root / f"{mode}-{name}"
        [(code, line)] = endings(folder)
        assert code == 1
        expected = (
            rf"train-transformer: {what}; the checkpoint of step {stands} stands\. Look at what was read "
            rf"\(calm inspect {dataset_uri} --rows train/\S+:[\d,-]+( --rows \S+)*; all of it is in (\S+)\) "
            r"and leave it out, lower learning_rate, or allow rewinds"
        )
        assert re.fullmatch(expected, line), line
        assert max(checkpoints(folder)) == stands
        assert not (folder / "out" / MANIFEST_NAME).exists()
        assert all(endings(folder, rank) == [(code, line)] for rank in range(ranks))


def test_the_rows_of_the_bad_batches_are_those_of_all_ranks(runs: tuple[int, Path], dataset_uri: str) -> None:
    """A batch has 4 sequences in micro-batches of one; the loss is wrong on the rank that has the first ones."""
    ranks, root = runs
    for mode in MODES[ranks]:
        lines = (root / f"{mode}-loss" / "job" / "bad-rows.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [5] * 4 + [6] * 4 + [7] * 4
        assert [row["suspect"] for row in rows] == ([True] * (4 // ranks) + [False] * (4 - 4 // ranks)) * 3
        assert {row["dataset"] for row in rows} == {dataset_uri}
        assert len({(row["shard"], row["row"]) for row in rows}) == len(rows)


def test_a_rewind_goes_on_behind_the_bad_batches_however_often_it_is_stopped(runs: tuple[int, Path]) -> None:
    """To the checkpoint of step 2: that of step 4 was made right before the trouble. Batches 3 to 7 are left out."""
    ranks, root = runs
    for mode in MODES[ranks]:
        unbroken, stopped = root / f"{mode}-rewinds", root / f"{mode}-stopped"
        [(code, line)] = endings(unbroken)
        assert code == 0
        assert line.endswith("(3 of 12 steps bad, 3 skipped, 1 rewind)")
        codes, lines = zip(*endings(stopped), strict=True)
        assert codes == (75, 137, 75, 137, 75, 0)
        # Steps 5 and 6 are bad.
        assert lines[2].startswith("stopped after step 6 of 12; the checkpoint of step 4 stands; run again")
        assert lines[-1] == line
        assert model(stopped).digest == model(unbroken).digest
        assert model(stopped).facts.rewinds == 1
        assert [record["step"] for record in curves(unbroken)] == list(range(1, 13))
        last = checkpoints(unbroken)[12].facts
        assert (last.position, last.guards.bad_steps) == (4 * (12 + 5), 3)
        assert last.part("results") == checkpoints(stopped)[12].facts.part("results")


def test_a_bad_last_step_is_no_result(more: Path) -> None:
    [(code, line)] = endings(more / "last")
    assert code == 1
    assert line.startswith("train-transformer: gradient norm is nan at step 12; the checkpoint of step 10 stands.")
    assert not (more / "last" / "out" / MANIFEST_NAME).exists()


def test_weights_that_are_not_finite_are_no_checkpoint(more: Path) -> None:
    [(code, line)] = endings(more / "infinite")
    assert code == 1
    assert re.search(
        r"validation cross entropy is nan at steps 7 to 8; the checkpoint of step 4 stands "
        r"\(the last one could not be saved: weights/\S+ is not finite\)\. Look at",
        line,
    )
    assert max(checkpoints(more / "infinite")) == 4


def test_rewinds_come_to_an_end(more: Path) -> None:
    """All batches are bad from the fifth on: two rewinds, three times as many bad steps as are allowed in a row."""
    [(code, line)] = endings(more / "always")
    assert code == 1
    assert "cross entropy is nan, gradient norm is nan at steps 3 to 5; the checkpoint of step 2 stands" in line
    rows = [json.loads(row) for row in (more / "always" / "job" / "bad-rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 4


def test_a_validation_that_is_not_finite_can_be_gone_back_from(more: Path) -> None:
    [(code, line)] = endings(more / "validation-rewinds")
    assert code == 0
    assert line.endswith("(1 of 12 steps bad, 1 rewind)")
    assert checkpoints(more / "validation-rewinds")[12].facts.position == 4 * (12 + 8 - 6)


def test_a_training_that_begins_badly_goes_back_to_its_beginning(more: Path) -> None:
    [(code, line)] = endings(more / "all-at-once")
    assert code == 0
    assert line.endswith("(3 of 12 steps bad, 3 skipped, 1 rewind)")
    assert checkpoints(more / "all-at-once")[12].facts.position == 4 * (12 + 3)


def test_losses_that_stay_high_are_gone_back_from_and_one_alone_is_counted(more: Path) -> None:
    [(code, line)] = endings(more / "spikes")
    assert code == 0
    assert line.endswith("(4 loss spikes, 1 rewind)")
    facts = checkpoints(more / "spikes")[160].facts
    assert facts.position == 4 * (160 + 152 - 140)


def test_calm_train_ends_with_a_line_whose_command_shows_the_rows(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a higher limit, the same training goes on from its checkpoint, and says what it has left out."""
    monkeypatch.setattr(launcher, "WORKER", not_finite_worker.__name__)
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(FAULT_VARIABLE, Case("", faults={batch: ["loss", "nan"] for batch in "567"}).to_json())
    settings = SETTINGS | {f"model.{name}": value for name, value in SHAPE.items()}
    options = [f"--set=transformer.{name}={value}" for name, value in settings.items() if name != "model"]
    output = str(tmp_path / "out")
    command = ["train", "transformer", "--dataset", dataset_uri, "--output", output, *options]
    assert call(*command) == 1
    told = capfd.readouterr().err
    line = told.splitlines()[-1]
    assert line.startswith("error train-transformer: cross entropy is nan, gradient norm is nan at steps 5 to 7; the ")
    inspect = re.search(r"\(calm (inspect .*?); all of it is in ", line)
    assert inspect
    assert call(*inspect[1].split()) == 0
    assert len(re.findall(r"^train/\S+ row \d+$", capfd.readouterr().out, re.M)) == 3 * 4

    assert call(*command, "--set=transformer.bad_steps_limit=5") == 0
    shown, told = capfd.readouterr()
    assert re.findall(r" (\d+)/12 ", told) == [str(step) for step in range(5, 13)]  # it has gone on from step 4
    assert "(3 of 12 steps bad, 3 skipped)" in told
    assert re.search(r"^skipped steps +3$", shown, re.M)
    assert call("inspect", output) == 0
    assert re.search(r"^skipped steps +3$", capfd.readouterr().out, re.M)
