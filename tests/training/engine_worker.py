"""The ranks of test_engine: train a small model in each case of an engine, and write what the engine shows of it.

Rank 0 writes CASE.safetensors and CASE.json.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from calm_core.config import TrainingConfig
from calm_core.training import worker
from calm_core.training.engine import WEIGHTS, Engine

STEPS, SEQUENCES, MICRO_BATCH, LENGTH, VOCABULARY = 4, 8, 2, 6, 7
PRECISIONS = ("fp32", "bf16", "bf16-mixed")
BROKEN_STEP = 2
"""After so many steps, one rank's gradient is not finite."""
CLIPPING = 0.02
"""Below the norm of each step's gradient."""


class Case(NamedTuple):
    """How an engine is set up.

    Attributes:
        is_partitioned: Of ZeRO 3: that it shares out parameters of this size, too.
    """

    stage: int
    precision: str
    offload: bool = False
    is_partitioned: bool = False

    @property
    def name(self) -> str:
        more = "-offload" * self.offload + "-partitioned" * self.is_partitioned
        return f"zero{self.stage}-{self.precision}{more}"


CASES = [
    *(Case(stage, precision) for precision in PRECISIONS for stage in (0, 1, 2, 3)),
    *(Case(3, precision, is_partitioned=True) for precision in PRECISIONS),
    *(Case(stage, "fp32", offload=True) for stage in (1, 2, 3)),
    Case(1, "bf16-mixed", offload=True),
    Case(1, "bf16", offload=True),
]


class Odd(nn.Module):
    """A model with what is not as usual: odd sizes, a single number, one parameter under two names, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 5)
        self.down, self.up = nn.Linear(5, 3), nn.Linear(3, 5, bias=False)
        self.output = nn.Linear(5, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.register_buffer("shift", torch.tensor(1.001))  # no bf16 number
        self.register_buffer("unsaved", torch.tensor(1.003), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        hidden = self.embedding(tokens_BT)
        hidden = hidden + self.scale * self.up(torch.tanh(self.down(hidden)))
        return self.output(hidden).float() * self.shift * self.unsaved


def make_model() -> Odd:
    """Its initial weights are bf16 numbers, as DeepSpeed would make them."""
    torch.manual_seed(0)
    model = Odd().bfloat16().float()
    model.shift.fill_(1.001)
    model.unsaved.fill_(1.003)
    return model


def settings(case: Case) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "steps": STEPS, "warmup_steps": 0, "learning_rate": 1e-2, "gradient_clipping": CLIPPING, "ema_decay": 0.3,
            "global_batch_size": SEQUENCES, "micro_batch_size": MICRO_BATCH, "precision": case.precision,
            "zero_stage": case.stage, "offload": case.offload,
        }
    )  # fmt: skip


def batches() -> Tensor:
    """[STEPS, SEQUENCES, LENGTH]: the global batches."""
    shape = STEPS, SEQUENCES, LENGTH
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def loss_of(logits: Tensor, tokens_BT: Tensor) -> Tensor:
    """A micro-batch's share of the mean over a global batch, of how well each token is known after the one before."""
    logits_RV, next_R = logits[:, :-1].reshape(-1, VOCABULARY), tokens_BT[:, 1:].reshape(-1)
    return functional.cross_entropy(logits_RV, next_R, reduction="sum") / (SEQUENCES * (LENGTH - 1))


def values_for(engine: Engine, seed: int) -> dict[tuple[str, str], Tensor]:
    """Other values for the whole state."""
    random = torch.Generator().manual_seed(seed)
    return {key: torch.rand(shape, generator=random) for key, shape in sorted(engine.shapes().items())}


def micro_batches(batch: Tensor) -> Iterator[Tensor]:
    """Those of this rank."""
    own = SEQUENCES // dist.get_world_size()
    yield from batch[dist.get_rank() * own :][:own].split(MICRO_BATCH)


def step(engine: Engine, batch: Tensor, factor: float = 1.0) -> None:
    for tokens in micro_batches(batch):
        engine.backward(loss_of(engine(tokens), tokens) * factor)
        engine.step()


def state(engine: Engine) -> dict[str, Tensor]:
    return {f"{kind}/{name}": engine.get(kind, name).clone() for kind, name in engine.shapes()}


def run(case: Case) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an engine shows, as tensors and as numbers."""
    engine, probe = Engine(make_model(), settings(case)), batches()[0]
    shown: dict[str, Tensor] = {f"initial/{name}": value for name, value in state(engine).items()}
    norms, steps = [], []
    for number, batch in enumerate(batches()):
        if number == BROKEN_STEP:
            before = state(engine)
            step(engine, batch, factor=torch.inf if dist.get_rank() == dist.get_world_size() - 1 else 1.0)
            kept = all(torch.equal(value, before[name]) for name, value in state(engine).items())
            broken_norm, broken_steps = engine.gradient_norm, engine.optimizer_steps
        step(engine, batch)
        norms.append(engine.gradient_norm)
        steps.append(engine.optimizer_steps)
    shown |= state(engine)
    with torch.no_grad():
        shown["forward/own"] = engine(probe)
        with engine.averaged():
            shown["forward/averaged"] = engine(probe)
        shown["forward/after"] = engine(probe)
    shown |= {f"after/{name}": value for name, value in state(engine).items()}
    whole = engine.whole_weights()
    shown |= {f"whole/{name}": value for name, value in whole.items()}
    given = values_for(engine, seed=2)
    for (kind, name), value in given.items():
        engine.set(kind, name, value)
    returned = {key: torch.equal(engine.get(*key), value) for key, value in given.items()}
    with torch.no_grad():
        shown["forward/given"] = engine(probe)
    engine.optimizer_steps = 41
    step(engine, probe)
    numbers = {
        "stage": engine.stage,
        "norms": norms,
        "steps": steps,
        "kept": kept,
        "broken": [str(broken_norm), broken_steps],
        "not returned": [f"{kind}/{name}" for (kind, name), equal in returned.items() if not equal],
        "steps after it is set": engine.optimizer_steps,
        "not moved": [
            name for name in engine._parameters if torch.equal(engine.get(WEIGHTS, name), given[WEIGHTS, name])
        ],
    }
    return shown, numbers


def partition_all() -> None:
    """Let ZeRO 3 share out the smallest parameters, too, which it would keep whole on every rank."""
    usual = Engine._settings

    def changed(engine: Engine, config: TrainingConfig, ranks: int) -> dict[str, Any]:
        found = usual(engine, config, ranks)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return found

    Engine._settings = changed  # type: ignore[method-assign]


def main(folder: Path) -> None:
    worker._start_distributed()
    usual = Engine._settings
    for case in CASES:
        if case.is_partitioned:
            partition_all()
        shown, numbers = run(case)
        Engine._settings = usual  # type: ignore[method-assign]
        if dist.get_rank() == 0:
            tensors = {name: value.detach().clone().contiguous() for name, value in shown.items()}
            safetensors.torch.save_file(tensors, folder / f"{case.name}.safetensors")
            (folder / f"{case.name}.json").write_text(json.dumps(numbers))
    dist.destroy_process_group()
