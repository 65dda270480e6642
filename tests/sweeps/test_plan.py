"""What a sweep runs: grids, budgets, and who goes on."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from calm_core.config import Config, resolve_config
from calm_core.config import text as settings_text
from calm_core.errors import ConfigError
from pipelines.sweeps.plan import Plan, budgets, differing, make_plan, read_grid
from tests.docs.documented import ROOT

MINI = settings_text.read((ROOT / "tests" / "pipelines" / "mini.yaml").read_text())
FLOPS_A_STEP = {"autoencoder": 10.0, "calm": 100.0, "transformer": 300.0}


def plan_of(*grid: str, eta: int = 0, least: int = 1, content: str = "text", settings: tuple[str, ...] = ()) -> Plan:
    def resolve(values: Mapping[str, Any]) -> Config:
        return resolve_config(MINI, settings, values)

    return make_plan(
        read_grid(grid),
        resolve,
        lambda config, section: content if section == "data" else "",
        lambda config, kind: getattr(config, kind).steps * FLOPS_A_STEP[kind],
        eta,
        least,
    )


def names(plan: Plan, kind: str = "name") -> set[str]:
    return {getattr(run, kind) for run in plan.runs}


def test_a_grid_is_all_combinations_and_shares_what_does_not_differ() -> None:
    plan = plan_of("calm.learning_rate=1e-3,2e-3", "calm.model.head={kind: flow},{kind: energy}", "seed=0,1,2")
    assert len(plan.candidates) == 4
    assert len(names(plan)) == 12
    assert (len(names(plan, "dataset")), len(names(plan, "autoencoder"))) == (1, 3)  # one a seed
    assert differing(plan) == ("calm.learning_rate", "calm.model.head")
    run = plan.runs[-1]
    assert (run.config.calm.learning_rate, run.config.calm.model.head.kind, run.config.seed) == (2e-3, "energy", 2)


def test_equal_settings_text_and_code_have_equal_names() -> None:
    first, again = plan_of("seed=0,1"), plan_of("seed=1,2")
    assert first.runs[1] == again.runs[0]
    assert not names(first) & names(plan_of("seed=0,1", content="another text"))
    assert names(plan_of()) == names(plan_of("seed=0"))  # the seed of the settings
    changed = plan_of("seed=0", settings=("evaluation.samples=3",))
    assert names(changed, "autoencoder") == names(plan_of("seed=0"), "autoencoder")
    assert not names(changed) & names(first)


def test_each_model_takes_what_it_reads() -> None:
    plan = plan_of("model=calm,transformer", "calm.learning_rate=1e-3,2e-3", "transformer.steps=4,5,6")
    assert [each.model for each in plan.candidates] == ["calm"] * 2 + ["transformer"] * 3
    assert [run.autoencoder != "" for run in plan.runs] == [True] * 2 + [False] * 3


def test_steps_follow_from_flops() -> None:
    plan = plan_of("model=calm,transformer", "flops=3000,6000")
    assert [(run.model, run.steps, run.flops) for run in plan.runs] == [
        ("calm", 30, 3000),
        ("calm", 60, 6000),
        ("transformer", 10, 3000),
        ("transformer", 20, 6000),
    ]


@pytest.mark.parametrize(
    ("steps", "eta", "least", "expected"),
    [
        (900, 3, 100, [100, 300, 900]),
        (900, 3, 101, [300, 900]),
        (554, 2, 100, [139, 277, 554]),
        (80, 2, 100, [80]),
        (8, 2, 1, [1, 2, 4, 8]),
        (900, 0, 1, [900]),
    ],
)
def test_budgets(steps: int, eta: int, least: int, expected: list[int]) -> None:
    assert budgets(steps, eta, least) == expected


def test_halving_takes_the_best_by_their_mean_over_the_seeds() -> None:
    plan = plan_of("calm.learning_rate=1e-3,2e-3,3e-3,4e-3", "seed=0,1", eta=2, least=2, settings=("calm.steps=4",))
    assert plan.rungs == 2
    assert [plan.places(rung) for rung in range(2)] == [4, 2]
    assert len(plan.largest()) == 4 * 2 + 2 * 2
    scores: dict[str, float | None] = {}
    first = plan.due(scores)
    assert {run.steps for run in first} == {2} and len(first) == 8
    means = dict(zip((1e-3, 2e-3, 3e-3, 4e-3), ((1, 9), (4, 4), (6, 6), (None, 5.5)), strict=True))
    for run in first:
        scores[run.name] = means[run.config.calm.learning_rate][run.config.seed]
    second = plan.due(scores)
    assert {(run.steps, run.config.calm.learning_rate) for run in second} == {(4, 3e-3), (4, 4e-3)}  # 6 and 5.5
    assert plan.due(scores | {second[0].name: 1.0}) == second[1:]
    assert plan.due(scores | {run.name: 1.0 for run in second}) == []


def test_a_setting_that_failed_with_every_seed_does_not_go_on() -> None:
    plan = plan_of("calm.learning_rate=1e-3,2e-3", eta=2, least=2, settings=("calm.steps=4",))
    [low, high] = plan.due({})
    assert [run.config.calm.learning_rate for run in plan.due({low.name: None, high.name: 0.0})] == [2e-3]
    assert plan.due({low.name: None, high.name: None}) == []


WRONG = {
    "no value": ("calm.steps", "--grid calm.steps: expected section.key=value,value"),
    "an empty value": ("calm.steps=1,,2", "--grid calm.steps=1,,2: "),
    "no list": ("calm.steps=1]", "--grid calm.steps=1]: the values are not valid YAML"),
    "a value twice": ("seed=1,2,1", "--grid seed: has 1 twice"),
    "an unknown setting": ("calm.lerning_rate=1,2", "unknown setting calm.lerning_rate; did you mean calm.learning_"),
    "a refused value": ("calm.learning_rate=1,-2", "calm.learning_rate: "),
    "an impossible combination": ("autoencoder.model.chunk_size=4,5", "chunk_size"),
    "the text": ("data.sequence_length=32,64", "--set data.sequence_length=..."),
    "the protocol": ("evaluation.samples=2,4", "could not be compared"),
    "another model's": ("transformer.steps=2,4", "no run of this sweep reads it; add --grid model=transformer"),
    "nobody's": ("registry.promote=never,always", "no run of a sweep reads it"),
    "a model that is none": ("model=calm,gpt", "--grid model: expected calm or transformer"),
    "a kind of FLOPs": ("flops=many", "--grid flops: expected training FLOPs, e.g. 1e13"),
    "places that differ": ("autoencoder.model.chunk_size=4,8", "--set evaluation.position_interval=8"),
}


@pytest.mark.parametrize("grid, says", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_grid_is_refused(grid: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        plan_of(grid)


def test_two_values_that_come_to_the_same_run_are_refused() -> None:
    with pytest.raises(ConfigError, match="are the same run; leave one out"):
        plan_of("flops=3000,3001")


def test_halving_and_steps_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"calm\.steps: is what --halving shares out"):
        plan_of("calm.steps=1,2", eta=2)


def test_too_many_runs_are_refused_before_any_is_looked_at() -> None:
    values = ",".join(map(str, range(1, 102)))

    def resolve(values: Mapping[str, Any]) -> Config:
        raise AssertionError(values)

    grid = read_grid([f"calm.warmup_steps={values}", f"seed={values}"])
    with pytest.raises(ConfigError, match=r"makes 10,201 runs, a sweep may have 10,000"):
        make_plan(grid, resolve, lambda config, section: "", lambda config, kind: 1.0)
