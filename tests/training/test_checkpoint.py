"""Checkpoints: what is saved, kept, refused, and gone on from; on two real ranks where nothing else is said."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from pipelines.local.object_store import free_port
from tests.training.checkpoint_worker import DAMAGE, ELASTIC, PART, at_a_url, many
from tests.training.checkpoint_worker import elastic as elastic_trainings
from tests.training.engine_worker import Case
from tests.training.faulty_ranks import run_forked
from tests.training.test_engine import WEIGHTS_DIFFER, Expected, plain_loop

Results = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What has come of each scene of the worker."""
    folder = tmp_path_factory.mktemp("checkpoints")
    assert run_forked(2, many, folder) == 0
    found: Results = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_one_gives_way_to_the_one_before(results: Results, name: str) -> None:
    """It is told in one line; it goes once another one counts, and nothing in it is ever unpickled."""
    found = results["damages"][name]
    assert found["loaded"] == 1
    (line,) = found["said"]
    assert line.startswith("the checkpoint of step 2 is left out: ")
    assert "step-00000002" in line
    assert found["there"] == ["step-00000001", "step-00000002"]
    assert found["after"] == ["step-00000001", "step-00000003"]
    assert found["again"] == 3
    assert not found["unpickled"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{PART} is missing", f"/{PART}: file is missing"),
        (f"{PART} is flipped at 0.5", f"/{PART}: file is damaged (SHA-256 differs)"),
        ("manifest of another step", ": is of step 3, and another one was saved there"),
        ("manifest that leads outside", "(files.2.path: is no plain path inside the folder)"),
        ("a tensor is missing", ": lacks ema/down.bias"),
        ("a tensor is there twice", ": holds ema/down.bias twice"),
        ("a tensor has another shape", ": holds ema/down.bias of shape [6], [3] was expected"),
        ("a tensor is unknown", ": holds weights/other of shape [1], which this training has not"),
        ("a tensor is torch.float64", f"/{PART}: file is damaged (ema/down.bias is float64)"),
        ("a number is nan", f"/{PART}: file is damaged (ema/down.bias is not finite)"),
        ("a part leads outside", f": {PART} is a link that leads out of the folder"),
    ],
)
def test_the_line_says_why(results: Results, name: str, why: str) -> None:
    assert results["damages"][name]["said"][0].endswith(why)


def test_undamaged_the_newest_one_is_loaded(results: Results) -> None:
    assert results["damages"]["none"]["loaded"] == 2


def test_where_all_are_damaged_training_starts_anew_and_says_so(results: Results) -> None:
    found = results["all_damaged"]
    assert found["loaded"] is None
    assert [line.partition(": ")[0] for line in found["said"]] == [
        "the checkpoint of step 2 is left out",
        "the checkpoint of step 1 is left out",
        "no checkpoint can be used; training starts anew",
    ]
    assert found["there"] == ["step-00000001", "step-00000002"]
    assert found["standing"] == "there is no checkpoint"


def test_the_last_two_every_fourth_and_the_best_are_kept(results: Results) -> None:
    """The third is the best until the ninth; the seventh is the first of another start."""
    kept = {
        int(at): [int(name.removeprefix("step-")) for name in names]
        for at, names in results["retention"]["there"].items()
    }
    assert kept == {
        1: [1],
        2: [1, 2],
        3: [2, 3],
        4: [3, 4],
        5: [3, 4, 5],
        6: [3, 4, 5, 6],
        7: [3, 4, 6, 7],
        8: [3, 4, 7, 8],
        9: [4, 8, 9],
    }


def test_what_was_not_finished_goes_and_what_is_not_ours_stays(results: Results) -> None:
    found = results["leftovers"]
    assert (found["loaded"], found["failure"]) == (None, "")
    assert [line.partition(": ")[0] for line in found["said"]] == [
        "the checkpoint of step 9 is left out",
        "the checkpoint of step 7 is left out",
        "the checkpoint of step 2 is left out",
        "no checkpoint can be used; training starts anew",
    ]
    assert found["before"] == ["spec", "step-", "step-00000002", "step-00000007", "step-00000009", "step-x"]
    assert found["after"] == ["spec", "step-", "step-00000001", "step-x"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("the disk of one rank is full", "File too large"),
        ("the disk of all is full", "File too large"),
        ("the storage of one rank is away", "s3://b/c: does not answer (timeout)"),
        ("one rank raises anything", "KeyError: 'x'"),
        ("the manifest cannot be written", "s3://b/c: does not answer (timeout)"),
        ("the folder is another's", "another training has taken over this folder"),
        ("a number is not finite", "exp_avg/scale is not finite"),
    ],
)
def test_a_save_that_fails_is_told_once_and_the_next_one_works(results: Results, name: str, why: str) -> None:
    found = results["failing_saves"][name]
    assert why in found["failure"]
    assert found["said"] == [f"the checkpoint of step 2 could not be saved: {found['failure']}"]
    assert found["standing"] == f"the checkpoint of step 1 stands (the last one could not be saved: {found['failure']})"
    assert found["there"] == ["step-00000001"]
    assert found["next"] == ""
    assert found["loaded"] == 3


def test_a_training_without_any_says_that_there_is_none(results: Results) -> None:
    found = results["failing_saves"]["none was ever saved"]
    why = "(the last one could not be saved: s3://b/c: does not answer (timeout))"
    assert found == {"standing": f"there is no checkpoint {why}", "loaded": None}


def test_a_storage_that_fails_one_rank_while_it_reads_is_an_error_of_all_and_nothing_is_lost(results: Results) -> None:
    found = results["unreachable"]
    assert found["raised"] == ["away; try later True"] * 2
    assert found["there"] == ["step-00000001", "step-00000002"]
    assert found["said"] == []
    assert found["loaded"] == 2


def test_one_that_cannot_be_removed_whole_does_not_count_and_goes_later(results: Results) -> None:
    found = results["half_removed"]
    assert found["there"] == ["step-00000001", "step-00000002"]
    assert found["marked"] == ["step-00000002"]
    assert (found["loaded"], found["next"]) == (2, "")
    assert found["after"] == ["step-00000003"]


def test_steps_do_not_wait_for_a_storage_that_blocks(results: Results) -> None:
    """Its checkpoint holds what was there when it was begun, whatever the steps since have made of it."""
    found = results["slow"]
    busy_and_done, busy_alone = [True, True], [True, False]
    assert found["writing"] == [[busy_and_done, busy_alone]] * 3
    assert found["written"] == ["step-00000001"]
    assert not found["counts"]
    assert found["publishing"] == [[busy_alone, busy_and_done]] * 3
    assert found["said"] == [
        "no checkpoint of step 2: that of step 1 is being written still; a longer checkpoint_interval leaves none out"
    ]
    assert found["alive"] == [True, True]
    assert found["there"] == ["step-00000001", "step-00000004"]
    assert (found["loaded"], found["loaded before"]) == (4, 1)


def check_share(found: Results) -> None:
    written = [{name: size for p, held in found["parts"].items() if rank in p for name, size in held.items()}
               for rank in ("rank-00000-", "rank-00001-")]  # fmt: skip
    assert sum(len(held) for held in found["parts"].values()) == len(written[0]) + len(written[1]) == 4 * 5 + 1
    assert not written[0].keys() & written[1].keys()
    sizes = [sum(held.values()) for held in written]
    assert max(sizes) - min(sizes) <= max(max(held.values()) for held in written)
    assert found["there"] == sorted([*found["parts"], "curves.jsonl", "manifest.json"])
    assert found["loaded"] == 1


def test_each_rank_writes_its_share_in_parts(results: Results) -> None:
    check_share(results["share"])
    assert len(results["share"]["parts"]) == 8


def test_each_rank_writes_its_share_to_an_object_store(s3_place: str, tmp_path: Path) -> None:
    assert run_forked(2, at_a_url, s3_place, tmp_path) == 0
    check_share(json.loads((tmp_path / "results.json").read_text()))


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have saved at ZeRO 2, and two, one and four have gone on from there, in each stage."""
    folder = tmp_path_factory.mktemp("elastic")
    for ranks in (2, 1, 4):
        assert run_forked(ranks, elastic_trainings, folder) == 0
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, Expected]:
    return {precision: plain_loop(precision) for precision in WEIGHTS_DIFFER}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("case", ELASTIC, ids=lambda case: case.name)
def test_any_number_of_ranks_goes_on_in_any_stage(
    elastic: Path, expected: dict[str, Expected], ranks: int, case: Case
) -> None:
    """From two at ZeRO 2; moments and average included, against a plain loop that was never stopped."""
    found = safetensors.torch.load_file(elastic / f"{case.name}-{ranks}.safetensors")
    for kind, state in expected[case.precision].states.items():
        for name, value in state.items():
            assert (found[f"{kind}/{name}"] - value).abs().max() < WEIGHTS_DIFFER[case.precision], (kind, name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_as_many_ranks_in_the_same_stage_go_on_bit_for_bit(elastic: Path, precision: str) -> None:
    unbroken = safetensors.torch.load_file(elastic / f"unbroken-{precision}.safetensors")
    resumed = safetensors.torch.load_file(elastic / f"zero2-{precision}-2.safetensors")
    check_equal(resumed, unbroken)


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].equal(value), name


def test_a_rank_that_fails_does_not_wait_for_a_storage_that_never_answers(tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path; from tests.training.checkpoint_worker import hangs; hangs(Path({str(tmp_path)!r}))"
    )
    alone = {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | alone | {"MASTER_PORT": str(free_port())},
        check=False,
        timeout=120,  # it takes ten seconds, of which most are imports
    )
    assert ended.returncode == 7
