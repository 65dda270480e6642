"""The ranks of test_precision: train a small model in each ZeRO stage, and write what the engine gives back.

Rank 0 writes the weights of an unbroken training, <precision>-<stage>.safetensors, and those of one that
was stopped in between, <precision>-<stage>-resumed.safetensors.
"""

import math
from itertools import product
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from calm_core.config import TrainingConfig
from calm_core.store.facts import CheckpointFacts
from calm_core.training import worker
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.engine import Engine

STEPS, SEQUENCES, SIZE = 4, 64, 16
STAGES = (0, 1, 2, 3)
PRECISIONS = ("bf16", "bf16-mixed")


def make_model() -> nn.Module:
    """Its initial weights are bf16 numbers, as DeepSpeed would make them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, 32), nn.SiLU(), nn.Linear(32, 8)).bfloat16().float()
    model.register_buffer("scale", torch.tensor(1.001))  # no bf16 number
    return model


def batches() -> Tensor:
    """[STEPS, SEQUENCES, 1, SIZE]."""
    return torch.randn(STEPS, SEQUENCES, 1, SIZE, generator=torch.Generator().manual_seed(1)).bfloat16()


def loss_of(outputs: Tensor) -> Tensor:
    """One sequence's share of the mean over all."""
    return outputs.float().square().mean() / SEQUENCES


def settings(precision: str, stage: int) -> TrainingConfig:
    """One sequence is a micro-batch."""
    return TrainingConfig.model_validate(
        {
            "steps": STEPS, "warmup_steps": 0, "learning_rate": 1e-3, "gradient_clipping": 1e6,
            "global_batch_size": SEQUENCES, "micro_batch_size": 1, "zero_stage": stage, "precision": precision,
        }
    )  # fmt: skip


def train(precision: str, stage: int, folder: Path, stop: int = STEPS) -> dict[str, Tensor]:
    """The weights after all steps, or after those until `stop`; goes on from a checkpoint where there is one."""
    config, ranks = settings(precision, stage), dist.get_world_size()
    engine = Engine(make_model(), config)
    checkpointer = Checkpointer(str(folder), engine, config)
    found = checkpointer.load_latest()
    done = found[0].step if found else 0
    own = SEQUENCES // ranks
    for batch in batches()[done:stop]:
        for sequence in batch[dist.get_rank() * own :][:own]:
            engine.backward(loss_of(engine(sequence)))
            engine.step()
    if stop == STEPS:
        leave_a_step_out(engine, own)
    if stop < STEPS:
        facts = CheckpointFacts(step=stop, position=0, optimizer_steps=engine.optimizer_steps)
        checkpointer.save(facts, b"")
        checkpointer.finish()
        assert not checkpointer.failure
    return engine.whole_weights()


def leave_a_step_out(engine: Engine, own: int) -> None:
    """A gradient that is no number: the engine takes no step, and says so."""
    steps = engine.optimizer_steps
    for _ in range(own):
        engine.backward(engine(torch.full((1, SIZE), torch.inf, dtype=torch.bfloat16)).float().sum())
        engine.step()
    assert not math.isfinite(engine.gradient_norm)
    assert engine.optimizer_steps == steps


def main(folder: Path) -> None:
    worker._start_distributed()
    for precision, stage in product(PRECISIONS, STAGES):
        name = f"{precision}-{stage}"
        unbroken = train(precision, stage, folder / "none")
        train(precision, stage, folder / name, stop=2)
        resumed = train(precision, stage, folder / name)
        if dist.get_rank() == 0:
            safetensors.torch.save_file(unbroken, folder / f"{name}.safetensors")
            safetensors.torch.save_file(resumed, folder / f"{name}-resumed.safetensors")
    dist.destroy_process_group()
