"""What a training watches for: the rules alone, without a training."""

import json
import math
import random
import re
from typing import Any

import pytest

from calm_core.config import TrainingConfig
from calm_core.data.reading.dataset import Source
from calm_core.store.facts import ModelFacts
from calm_core.training.bad_rows import BadRows
from calm_core.training.guards import COUNTS, WINDOW, Guards, Verdict

NAN, INF = math.nan, math.inf


def guards(limit: int = 3, rewinds: int = 0, warmup: int = 0) -> Guards:
    settings = {"bad_steps_limit": limit, "rewinds": rewinds, "warmup_steps": warmup, "steps": 10**6}
    return Guards(TrainingConfig.model_validate(settings))


def check(watch: Guards, step: int, loss: float = 1.0, norm: float = 1.0, **metrics: float) -> Verdict:
    return watch.check_step(step, {"energy_loss": loss, **metrics}, loss, norm)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["loss", "norm", "accuracy"])
def test_any_number_that_is_not_finite_makes_a_step_bad(name: str, number: float) -> None:
    watch = guards()
    assert check(watch, 1) is Verdict.OK
    assert check(watch, 2, **{name: number}) is Verdict.BAD
    assert (watch.bad_steps, watch.skipped_steps) == (1, int(name == "norm"))
    told = {"loss": "energy loss", "norm": "gradient norm"}.get(name, name)
    assert f"{told} is {number}" in watch.reason
    assert check(watch, 3) is Verdict.OK
    assert (watch.bad_steps, watch.bad_in_row) == (1, 0)


def test_the_limit_is_of_bad_steps_in_a_row() -> None:
    watch = guards(limit=3)
    for step, norm in enumerate([NAN, NAN, 1.0, NAN, NAN, 1.0, INF, INF], 1):
        check(watch, step, norm=norm)
        assert not watch.at_limit
    check(watch, 9, norm=INF)
    assert watch.at_limit and not watch.wants_rewind
    assert (watch.bad_steps, watch.bad_in_row) == (7, 3)


def test_one_validation_that_is_not_finite_is_too_many_and_counts_once() -> None:
    watch = guards()
    check(watch, 1)
    assert watch.check_validation({"validation_loss": 1.0, "validation_accuracy": 0.5}) is Verdict.OK
    assert not watch.at_limit
    check(watch, 2)
    assert watch.check_validation({"validation_loss": 1.0, "validation_accuracy": NAN}) is Verdict.BAD
    assert watch.at_limit
    assert (watch.bad_steps, watch.reason) == (1, "validation accuracy is nan")
    again = guards()
    check(again, 1, norm=NAN)
    again.check_validation({"validation_loss": NAN})
    assert (again.bad_steps, again.skipped_steps, again.at_limit) == (1, 1, True)


def losses(number: int, seed: int = 0) -> list[float]:
    """As in training: they fall, quickly at first, and are noisy."""
    noise = random.Random(seed)
    return [2 + 6 * math.exp(-step / 100) + noise.gauss(0, 0.05) for step in range(number)]


def spikes(watch: Guards, values: list[float], first: int = 1) -> list[int]:
    return [step for step, loss in enumerate(values, first) if check(watch, step, loss) is Verdict.SPIKE]


def test_noise_and_the_fall_at_the_start_are_no_spikes() -> None:
    assert [spikes(guards(), losses(5000, seed)) for seed in range(3)] == [[]] * 3


def test_a_jump_is_a_spike_once_there_are_enough_losses() -> None:
    values = losses(1000)
    for step in (WINDOW // 2, 500, 501, 800):
        values[step - 1] += 3
    watch = guards()
    assert spikes(watch, values) == [500, 501, 800]
    assert (watch.loss_spikes, watch.bad_steps) == (3, 0)


def test_nothing_is_a_spike_in_warm_up() -> None:
    values = losses(1000)
    values[499] += 3
    values[599] += 3
    assert spikes(guards(warmup=500), values) == [600]


def test_equal_losses_have_no_scale_to_judge_by() -> None:
    assert spikes(guards(), [1.0] * 200 + [5.0]) == []


def test_losses_of_another_level_are_spikes_until_they_are_the_rule() -> None:
    values = losses(600) + [loss + 3 for loss in losses(900)[600:]]
    found = spikes(guards(), values)
    assert found == list(range(601, 601 + len(found)))
    assert 5 < len(found) <= WINDOW // 2 + 1  # until half of the window is of the new level


def test_bad_steps_take_no_part_in_what_losses_are_compared_with() -> None:
    watch = guards(limit=1000)
    for step in range(1, 2 * WINDOW):
        check(watch, step, loss=100.0, norm=NAN)
    assert spikes(watch, [*losses(1000)[500:], 5.0], first=2 * WINDOW) == [2 * WINDOW + 500]


def test_a_batch_in_which_nothing_counts_has_no_loss() -> None:
    values = losses(600)
    watch, other = guards(), guards()
    for step, loss in enumerate(values, 1):
        check(watch, step, loss)
        check(other, step, loss)
        assert other.check_step(step, {}, None, 0.0) is Verdict.OK
    assert watch.state_dict() == other.state_dict()


def troubled(number: int) -> list[tuple[float, float]]:
    """Losses and gradient norms of a training in which much goes wrong."""
    chance = random.Random(5)
    found = []
    for loss in losses(number):
        what = chance.random()
        found.append((loss + 3 * (what < 0.05), NAN if 0.05 < what < 0.1 else 1.0))
    return found


@pytest.mark.parametrize("stop", [0, 1, WINDOW - 1, WINDOW, 300, 555])
def test_a_resumed_training_decides_as_an_unbroken_one(stop: int) -> None:
    unbroken, verdicts = guards(limit=2), []
    state: dict[str, Any] = unbroken.state_dict()
    for step, (loss, norm) in enumerate(troubled(600), 1):
        verdicts.append(check(unbroken, step, loss, norm))
        if step == stop:
            assert not unbroken.bad_in_row  # then there is no checkpoint
            state = json.loads(json.dumps(unbroken.state_dict(), allow_nan=False))
    resumed = guards(limit=2)
    resumed.load_state_dict(state)
    again = [check(resumed, step, *numbers) for step, numbers in enumerate(troubled(600)[stop:], stop + 1)]
    assert again == verdicts[stop:]
    assert resumed.state_dict() == unbroken.state_dict()
    assert {Verdict.BAD, Verdict.SPIKE} <= {*verdicts}


def test_a_rewind_keeps_the_counts_and_forgets_the_losses_since() -> None:
    watch = guards(limit=2, rewinds=1)
    spikes(watch, losses(300))
    state = watch.state_dict()
    spikes(watch, [50.0], first=301)
    assert not watch.wants_rewind
    for step in (302, 303):
        check(watch, step, norm=NAN)
    assert watch.at_limit and watch.wants_rewind
    watch.rewind(state)
    assert watch.counts == {"bad_steps": 2, "skipped_steps": 2, "loss_spikes": 1, "rewinds": 1}
    assert watch.state_dict()["losses"] == state["losses"]
    assert not watch.at_limit and not watch.wants_rewind
    for step in (301, 302):
        check(watch, step, norm=NAN)
    assert watch.at_limit and not watch.wants_rewind  # it has been tried as often as it may


def test_a_lasting_spike_wants_a_rewind_and_never_a_stop() -> None:
    patient, eager = guards(limit=2), guards(limit=2, rewinds=1)
    for watch in (patient, eager):
        spikes(watch, losses(300))
        spikes(watch, [50.0], first=301)
        assert not watch.wants_rewind
        spikes(watch, [50.0], first=302)
        assert not watch.at_limit
    assert eager.wants_rewind and not patient.wants_rewind


def test_a_validation_wants_a_rewind_too() -> None:
    watch = guards(rewinds=1)
    state = watch.state_dict()
    check(watch, 1)
    watch.check_validation({"validation_loss": INF})
    assert watch.wants_rewind
    watch.rewind(state)
    assert not watch.at_limit


def test_a_rewind_goes_to_a_checkpoint_that_a_good_step_has_followed() -> None:
    watch = guards(limit=9, rewinds=1)
    watch.saved(0)
    check(watch, 1, norm=NAN)
    assert watch.rewind_step == 0  # there is no other
    check(watch, 2)
    watch.saved(2)
    assert watch.rewind_step == 0
    check(watch, 3, norm=NAN)
    assert watch.rewind_step == 0
    check(watch, 4)
    assert watch.rewind_step == 2
    check(watch, 5, norm=NAN)
    watch.saved(5)  # in the middle of trouble
    check(watch, 6)
    assert watch.rewind_step == 2
    again = guards()
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert again.rewind_step == 2


def test_the_last_step_is_at_the_limit_if_it_is_bad() -> None:
    watch = Guards(TrainingConfig(steps=2, warmup_steps=0))
    check(watch, 1, norm=NAN)
    assert not watch.at_limit
    check(watch, 2, norm=NAN)
    assert watch.at_limit


def test_what_went_wrong_is_said_in_words() -> None:
    watch = Guards(TrainingConfig(steps=24, warmup_steps=0, bad_steps_limit=50))
    assert watch.summary() == ""
    for step in range(1, 22):
        check(watch, step, norm=NAN)
    assert watch.summary() == "21 of 24 steps bad, 21 skipped"
    watch.load_state_dict(watch.state_dict() | {"bad_steps": 0, "skipped_steps": 0, "loss_spikes": 1, "rewinds": 2})
    assert watch.summary() == "1 loss spike, 2 rewinds"


def test_with_rewinds_what_says_when_one_is_due_tells_trainings_apart() -> None:
    plain, rewinding = (TrainingConfig(steps=2, warmup_steps=0, rewinds=rewinds) for rewinds in (0, 1))
    due = {"bad_steps_limit", "checkpoint_interval", "validation_interval"}
    assert due <= plain.execution_settings()
    assert rewinding.execution_settings() == plain.execution_settings() - due
    assert "rewinds" not in plain.execution_settings()


def sources(names: list[tuple[str, str, int]]) -> Any:
    return lambda position: Source(*names[position])


def test_bad_rows_are_shown_by_the_command_that_takes_them() -> None:
    places = [("d", "train/a", 3), ("d", "train/b", 0), ("d", "train/a", 2), ("other", "train/a", 9)]
    rows = BadRows(7, 2, range(4), [], sources(places))
    assert rows.steps == "steps 6 to 7"
    assert rows.command() == "calm inspect d --rows train/a:2-3 --rows train/b:0"
    told = [json.loads(line) for line in rows.to_bytes().splitlines()]
    assert told[3] == {"step": 7, "dataset": "other", "shard": "train/a", "row": 9, "suspect": False}
    assert [line["step"] for line in told] == [6, 6, 7, 7]
    suspected = BadRows(7, 4, range(4), [3], sources(places))
    assert (suspected.steps, suspected.command()) == ("step 7", "calm inspect other --rows train/a:9")


def test_more_rows_than_a_line_holds_are_cut_between_two() -> None:
    places = [("d", "train/a", 2 * row) for row in range(1000)]
    command = BadRows(1, 1000, range(1000), [], sources(places)).command()
    assert len(command) <= 500
    assert re.fullmatch(r"calm inspect d --rows train/a:0,2,4,.*,\d+", command)
    last = int(command.rpartition(",")[2])
    assert last == 2 * command.count(",")


def test_every_count_is_a_fact_of_the_trained_model() -> None:
    assert {*COUNTS} == {*guards().counts} <= {*ModelFacts.model_fields}
