"""The engine, in every ZeRO stage and precision, against a plain loop: what it steps, leaves out, shows and takes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from calm_core.training.engine import zero_stage
from calm_core.training.optimizer import parameter_groups
from tests.training.engine_worker import (
    CASES,
    CLIPPING,
    MICRO_BATCH,
    Case,
    batches,
    loss_of,
    main,
    make_model,
    settings,
)
from tests.training.faulty_ranks import run_forked

RANKS = (1, 2)
# In bf16 these odd sizes are rounded differently where they lie elsewhere in memory; test_precision has even ones.
WEIGHTS_DIFFER = {"fp32": 2e-6, "bf16": 1e-3, "bf16-mixed": 1e-3}
"""At most, from the plain loop's; they go 4e-2 far."""
NORMS_DIFFER = {"fp32": 1e-5, "bf16": 1e-3, "bf16-mixed": 1e-3}
LOGITS_DIFFER = {"fp32": 1e-5, "bf16": 2e-2, "bf16-mixed": 1.6e-2}
"""One or two bf16 numbers; those of the averaged weights are 9e-2 away from the own weights'."""


class Shown(NamedTuple):
    """What the engine of a case shows (see the worker)."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that."""
        return {n.removeprefix(prefix): value for n, value in self.tensors.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Where the worker has written, by the number of ranks."""
    found = {ranks: tmp_path_factory.mktemp(f"ranks-{ranks}") for ranks in RANKS}
    for ranks, folder in found.items():
        assert run_forked(ranks, main, folder) == 0
    return found


@pytest.fixture(params=[(ranks, case) for ranks in RANKS for case in CASES], ids=lambda p: f"{p[0]}-{p[1].name}")
def shown(request: pytest.FixtureRequest, folders: dict[int, Path]) -> Iterator[tuple[Case, Shown]]:
    ranks, case = request.param
    place = folders[ranks] / case.name
    numbers = json.loads(place.with_suffix(".json").read_text())
    assert numbers["stage"] == zero_stage(settings(case), ranks, settings(case).precision)
    yield case, Shown(safetensors.torch.load_file(place.with_suffix(".safetensors")), numbers)


class Expected(NamedTuple):
    """What a plain loop makes of the same batches.

    Attributes:
        norms: Of each step's gradient before it is clipped.
        states: The fp32 state after the last step, by kind.
    """

    norms: list[float]
    states: dict[str, dict[str, Tensor]]


def plain_loop(precision: str) -> Expected:
    """Gradients of each micro-batch in the precision, all else in fp64, in one process: without DeepSpeed, without a
    step that cannot be taken."""
    dtype, config = torch.bfloat16 if precision == "bf16" else torch.float32, settings(Case(0, precision))
    masters = make_model().double()
    optimizer = torch.optim.AdamW(parameter_groups(masters, config), betas=config.betas)
    averages = {name: p.detach().clone() for name, p in masters.named_parameters()}
    norms = []
    for number, batch in enumerate(batches()):
        optimizer.zero_grad()
        for tokens in batch.split(MICRO_BATCH):
            model = make_model().to(dtype)
            model.load_state_dict(masters.state_dict())
            model.shift, model.unsaved = make_model().shift, make_model().unsaved
            loss_of(computed(model, tokens, precision), tokens).backward()
            for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                own = parameter.grad.double()
                master.grad = own if master.grad is None else master.grad + own
        norms.append(float(nn.utils.clip_grad_norm_(masters.parameters(), CLIPPING)))
        optimizer.step()
        keep = min(config.ema_decay, (2 + number) / (11 + number))
        for name, p in masters.named_parameters():
            averages[name] = keep * averages[name] + (1 - keep) * p.detach()
    moments = {
        kind: {name: optimizer.state[p][kind].float() for name, p in masters.named_parameters()}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    weights = {name: p.detach().float() for name, p in masters.named_parameters()}
    return Expected(norms, {"weights": weights, "ema": {n: a.float() for n, a in averages.items()}, **moments})


def computed(model: nn.Module, tokens_BT: Tensor, precision: str) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        return model(tokens_BT)


@pytest.fixture(scope="module")
def expected() -> dict[str, Expected]:
    """By precision."""
    return {precision: plain_loop(precision) for precision in WEIGHTS_DIFFER}


def forward(weights: dict[str, Tensor], precision: str) -> Tensor:
    """What a plain model with these weights computes for the first batch."""
    model = make_model()
    model.load_state_dict(weights, strict=False)
    model.output.weight = model.embedding.weight
    if precision == "bf16":
        shift, unsaved = model.shift, model.unsaved
        model.bfloat16()
        model.shift, model.unsaved = shift, unsaved
    with torch.no_grad():
        return computed(model, batches()[0], precision)


def test_steps_are_those_of_a_plain_loop(shown: tuple[Case, Shown], expected: dict[str, Expected]) -> None:
    """With clipping, micro-batches, the average, and a step in between that cannot be taken and leaves no trace."""
    (case, found), (norms, states) = shown, expected[shown[0].precision]
    assert found.numbers["norms"] == pytest.approx(norms, rel=NORMS_DIFFER[case.precision])
    assert found.numbers["steps"] == [1, 2, 3, 4]
    for kind, state in states.items():
        for name, value in state.items():
            own = found.tensors[f"{kind}/{name}"]
            assert own.dtype == torch.float32
            assert own.shape == value.shape
            assert (own - value).abs().max() < WEIGHTS_DIFFER[case.precision], (kind, name)


def test_a_gradient_of_one_rank_that_is_not_finite_changes_nothing(shown: tuple[Case, Shown]) -> None:
    numbers = shown[1].numbers
    norm, steps = numbers["broken"]
    assert not math.isfinite(float(norm))
    assert steps == 2
    assert numbers["kept"]


def test_the_average_is_what_is_computed_with_while_it_is_asked_for(shown: tuple[Case, Shown]) -> None:
    case, found = shown
    own, averaged, after = (found.tensors[f"forward/{name}"] for name in ("own", "averaged", "after"))
    differ = LOGITS_DIFFER[case.precision]
    assert (own - forward(found.part("weights/"), case.precision)).abs().max() < differ
    assert (averaged - forward(found.part("ema/"), case.precision)).abs().max() < differ
    assert (own - averaged).abs().max() > 4 * differ
    assert torch.equal(after, own)
    for name, value in found.part("after/").items():
        assert torch.equal(value, found.tensors[name]), name


def test_the_trained_weights_have_the_models_names_and_the_averages_values(shown: tuple[Case, Shown]) -> None:
    _, found = shown
    whole = found.part("whole/")
    assert whole.keys() == make_model().state_dict().keys()  # with both names of the shared one
    for name, value in whole.items():
        source = {"output.weight": "ema/embedding.weight", "shift": "weights/shift"}.get(name, f"ema/{name}")
        assert torch.equal(value, found.tensors[source]), name
    assert whole["shift"] == torch.tensor(1.001)


def test_the_state_is_taken_whole_and_given_back(shown: tuple[Case, Shown]) -> None:
    """Every kind, every parameter once, and the buffers that belong to the model."""
    case, found = shown
    names = {name for name, _ in make_model().named_parameters()}
    kinds = ("weights", "exp_avg", "exp_avg_sq", "ema")
    assert found.part("initial/").keys() == {f"{kind}/{name}" for kind in kinds for name in names} | {"weights/shift"}
    for name, value in found.part("initial/weights/").items():
        assert torch.equal(value, make_model().state_dict()[name]), name
    assert found.numbers["not returned"] == []
    given = {key[1]: value for key, value in _given(found).items() if key[0] == "weights"}
    difference = found.tensors["forward/given"] - forward(given, case.precision)
    assert difference.abs().max() < LOGITS_DIFFER[case.precision]
    assert found.numbers["steps after it is set"] == 42
    assert found.numbers["not moved"] == []


def _given(found: Shown) -> dict[tuple[str, str], Tensor]:
    """As the worker has made them."""
    random = torch.Generator().manual_seed(2)
    keys = sorted(tuple(name.split("/", 1)) for name in found.part("initial/"))
    return {key: torch.rand(found.tensors["initial/" + "/".join(key)].shape, generator=random) for key in keys}
