"""The ranks of test_averages: train a small CALM model in each ZeRO stage, and write what comes of it.

Argument: the folder where rank 0 writes, for each case, tensors by "<what>/<parameter>": the weights after each step
(0: the initial ones), their average at the end as the optimiser has it, and the trained model. What went on from a
checkpoint in between lies in <case>-resumed.
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

STEPS, SAVED, SEQUENCES, VOCABULARY, CHUNK, LATENT = 5, 3, 4, 13, 4, 5
CASES = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 3)]


def settings(precision: str, stage: int) -> CalmConfig:
    """Every part of the recipe: two learning rates, a schedule, clipping, an average, two ranks."""
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


def train(precision: str, stage: int, folder: Path, validates: bool) -> dict[str, Tensor]:
    """Train to the end, from a checkpoint if there is one, and save one; validating is no part of it."""
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
    for step in range(done, STEPS):
        engine.set_learning_rate(learning_rate_factor(config, step))
        tokens, first = batch(step), dist.get_rank() * size
        noise = SequenceNoise(range(first, first + size))
        engine.backward(task.loss(engine, tokens[first : first + size], noise, task.counts(tokens)).value)
        engine.step()
        keep(step + 1, WEIGHTS)
        with engine.averaged() if validates else nullcontext():
            written["held-out loss"] = held_out_loss(task, engine)
        if step + 1 == SAVED:
            checkpointer.save(CheckpointFacts(step=SAVED, position=0, optimizer_steps=engine.optimizer_steps), b"")
            checkpointer.finish()
            assert not checkpointer.failure
    keep(AVERAGE, AVERAGE)
    return written | {f"trained/{name}": value for name, value in engine.whole_weights().items()}


def main(folder: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    for precision, stage in CASES:
        case = folder / f"{precision}-{stage}"
        for name, validates in ((case.name, True), (f"{case.name}-resumed", False)):
            tensors = train(precision, stage, case, validates)
            if dist.get_rank() == 0:
                safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
