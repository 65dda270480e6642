"""How fast each model of a profile is trained on a GPU, and how much memory it takes: `python -m benchmarks.gpu small`.

One rank, the engine of our training in the precision that `auto` is, the profile's micro-batches, random tokens, a step
of the optimiser after each. Utilisation is of the GPU's dense bf16 peak, with FLOPs as `calm estimate` counts them, and
so is the memory that is compared.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from calm_core.config import CalmConfig, Config, TrainingConfig, resolve_config
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer
from calm_core.scaling.cost import Cost, estimate
from calm_core.training import worker
from calm_core.training.engine import Engine
from calm_core.training.meter import most_memory, peak_tflops
from calm_core.training.tasks.autoencoder import AutoencoderTask
from calm_core.training.tasks.base import Task
from calm_core.training.tasks.calm import CalmTask
from calm_core.training.tasks.transformer import TransformerTask
from pipelines import profiles

_KINDS = ("autoencoder", "calm", "transformer")  # as `estimate` has them
_STEPS, _WARM_UP = 20, 5


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="*", default=["small"], help="names of profiles")
    names = parser.parse_args().profile
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    worker._start_distributed()
    device = worker._device()
    print(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU",
        f"torch {torch.__version__}",
        sep=", ",
    )
    print("| profile | model | micro-batch | tokens/s | TFLOP/s | utilisation | memory | estimated |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        config = resolve_config(profiles.load(name))
        for kind, cost in zip(_KINDS, estimate(config, gpus=1).values(), strict=True):
            print(f"| {name} | {kind} | {' | '.join(_measured(config, kind, cost, device))} |", flush=True)
    torch.distributed.destroy_process_group()


def _measured(config: Config, kind: str, cost: Cost, device: torch.device) -> Iterator[str]:
    section: TrainingConfig = getattr(config, kind)
    section = section.model_copy(update={"global_batch_size": section.micro_batch_size})
    tokens = section.micro_batch_size * config.data.sequence_length
    yield f"{section.micro_batch_size} x {config.data.sequence_length}"
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds, stage = _seconds_of_a_step(config, kind, section, device)
    flops, peak = cost.training_flops_per_token * tokens / seconds / 1e12, peak_tflops(section, device)
    yield f"{tokens / seconds:,.0f}"
    yield f"{flops:,.0f}"
    yield f"{flops / peak:.0%}" if peak else "unknown"
    yield f"{most_memory(device) / 2**30:.1f} GiB"
    yield f"{(cost.state_bytes[stage] + cost.activation_bytes) / 2**30:.1f} GiB"


def _seconds_of_a_step(config: Config, kind: str, section: TrainingConfig, device: torch.device) -> tuple[float, int]:
    """The median, and the ZeRO stage."""
    task = _task(config, kind, device)
    engine = Engine(task.model, section)
    generator = torch.Generator().manual_seed(0)
    shape = (section.micro_batch_size, config.data.sequence_length)
    tokens_BT = torch.randint(1, config.tokenizer.vocab_size, shape, generator=generator).to(device)
    counts = task.counts(tokens_BT)
    times = []
    for step in range(_STEPS):
        started = time.perf_counter()
        noise = SequenceNoise([step * len(tokens_BT) + row for row in range(len(tokens_BT))], device)
        engine.backward(task.loss(engine, tokens_BT, noise, counts).value)
        engine.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[_WARM_UP:]), engine.stage


def _task(config: Config, kind: str, device: torch.device) -> Task[Any]:
    torch.manual_seed(0)
    vocab_size, shape = config.tokenizer.vocab_size, config.autoencoder.model
    if kind == "transformer":
        return TransformerTask(Transformer(config.transformer.model, vocab_size).to(device), pad_id=0)
    autoencoder = make_autoencoder(shape, vocab_size).to(device)
    if kind != CalmConfig.kind:
        return AutoencoderTask(autoencoder, pad_id=0)
    freeze(autoencoder.to(torch.bfloat16 if device.type == "cuda" else torch.float32))
    calm = Calm(config.calm.model, vocab_size, shape.chunk_size, shape.latent_size).to(device)
    return CalmTask(calm, autoencoder, pad_id=0)


if __name__ == "__main__":
    main()
