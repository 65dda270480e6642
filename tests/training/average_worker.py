"""The ranks of test_averages: train a small CALM model in each ZeRO stage and precision, and write what comes of it.

Argument: the folder where rank 0 writes, for each case, tensors by "<what>/<parameter>": the weights after each step
(0: the initial ones), their average at the end as the optimiser has it, and the trained model. What was stopped in
between and went on lies in <case>-resumed.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import deepspeed
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from calm_core.config import CalmConfig, MlpAutoencoderConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.store.facts import CheckpointFacts
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.engine import WEIGHTS, Engine
from calm_core.training.optimizer import AVERAGE, learning_rate_factor
from calm_core.training.tasks.calm import CalmTask

STEPS, STOP, SEQUENCES, VOCABULARY, CHUNK, LATENT = 6, 3, 4, 13, 4, 5
_BF16 = [("bf16", stage) for stage in (1, 2, 3)]
CASES = {1: [("fp32", 0), *_BF16], 2: [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), *_BF16]}
"""By the number of ranks: one in fp32 runs every stage as 0, and bf16 runs 0 as 1."""


def settings(precision: str, stage: int) -> CalmConfig:
    """Every part of the recipe: two learning rates, a schedule, clipping, an average, two micro-batches or ranks."""
    head = {"kind": "energy", "num_layers": 1, "model_samples": 3, "target_samples": 4}
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CalmConfig.model_validate(
        {
            "steps": STEPS, "warmup_steps": 2, "learning_rate": 2e-2, "head_learning_rate": 5e-2, "schedule": "cosine",
            "final_learning_rate_fraction": 0.1, "ema_decay": 0.4, "gradient_clipping": 0.1, "precision": precision,
            "zero_stage": stage, "global_batch_size": SEQUENCES, "micro_batch_size": SEQUENCES // 2,
            "model": {**shape, "head": head},
        }
    )  # fmt: skip


def make_task(config: CalmConfig) -> CalmTask:
    torch.manual_seed(0)
    shape = MlpAutoencoderConfig(chunk_size=CHUNK, latent_size=LATENT, hidden_size=8, intermediate_size=8)
    autoencoder = MlpAutoencoder(shape, VOCABULARY).to(torch.bfloat16 if config.precision == "bf16" else torch.float32)
    freeze(autoencoder)
    return CalmTask(Calm(config.model, VOCABULARY, CHUNK, LATENT), autoencoder, pad_id=0)


def batch(step: int) -> Tensor:
    """[SEQUENCES, 4 x CHUNK]"""
    return torch.randint(1, VOCABULARY, (SEQUENCES, 4 * CHUNK), generator=torch.Generator().manual_seed(step))


def held_out_loss(task: CalmTask, forward: object) -> Tensor:
    tokens = batch(1000)
    with torch.no_grad():
        return task.loss(forward, tokens, SequenceNoise(range(SEQUENCES)), task.counts(tokens)).value


def train(precision: str, stage: int, folder: Path, stop: int = STEPS, validate: bool = False) -> dict[str, Tensor]:
    """Train until a step, from a checkpoint if there is one; validating is no part of it."""
    config = settings(precision, stage)
    task = make_task(config)
    engine = Engine(task.model, config)
    checkpointer = Checkpointer(str(folder), engine, config)
    found = checkpointer.load_latest()
    done, size = found[0].step if found else 0, config.micro_batch_size
    written: dict[str, Tensor] = {}

    def keep(what: object, kind: str) -> None:
        written.update({f"{what}/{name}": engine.get(kind, name).clone() for name, _ in task.model.named_parameters()})

    keep(done, WEIGHTS)
    for step in range(done, stop):
        engine.set_learning_rate(learning_rate_factor(config, step))
        tokens = batch(step)
        for first in range(dist.get_rank() * size, SEQUENCES, size * dist.get_world_size()):
            part, noise = tokens[first : first + size], SequenceNoise(range(first, first + size))
            engine.backward(task.loss(engine, part, noise, task.counts(tokens)).value)
            engine.step()
        keep(step + 1, WEIGHTS)
        with engine.averaged() if validate else nullcontext():
            written["held-out loss"] = held_out_loss(task, engine)
    keep(AVERAGE, AVERAGE)
    if stop < STEPS:
        checkpointer.save(CheckpointFacts(step=stop, position=0, optimizer_steps=engine.optimizer_steps), b"")
        assert not checkpointer.finish()
    return written | {f"trained/{name}": value for name, value in engine.whole_weights().items()}


def main(folder: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    for precision, stage in CASES[dist.get_world_size()]:
        case = f"{precision}-{stage}"
        unbroken = train(precision, stage, folder / "none", validate=True)
        train(precision, stage, folder / case, stop=STOP)
        resumed = train(precision, stage, folder / case)
        if dist.get_rank() == 0:
            safetensors.torch.save_file(unbroken, folder / f"{case}.safetensors")
            safetensors.torch.save_file(resumed, folder / f"{case}-resumed.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
