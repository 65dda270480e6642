"""What a checkpoint costs a training on one rank: `python -m benchmarks.checkpoint [FOLDER] [--parameters N]`.

Prints a Markdown table: how long the step waits, how long a thread writes, and the memory of both.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from calm_core.config import TrainingConfig
from calm_core.store import storage
from calm_core.store.facts import CheckpointFacts
from calm_core.training import worker
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.engine import Engine
from pipelines.local.object_store import free_port

_WIDTH, _ROWS = 2048, 8


def _memory(name: str) -> int:
    """A figure of this process in bytes: VmRSS now, VmHWM the most since it was set back."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) << 10


def _set_back() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _engine(parameters: int) -> Engine:
    """One that has made a step, so that it holds all that it will."""
    layers = [nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(-(-parameters // _WIDTH**2))]
    config = TrainingConfig(steps=1, warmup_steps=0, global_batch_size=_ROWS, micro_batch_size=_ROWS, precision="fp32")
    engine = Engine(nn.Sequential(*layers), config)
    engine.backward(engine(torch.randn(_ROWS, _WIDTH)).square().mean())
    engine.step()
    return engine


def main() -> None:
    """Save twice: the second time into memory that the first one has used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("folder", nargs="?", help="URL of a folder to write to; a temporary one by default")
    parser.add_argument("--parameters", type=int, default=100_000_000)
    arguments = parser.parse_args()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(free_port()))
    worker._start_distributed()
    engine = _engine(arguments.parameters)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or temporary
        checkpointer = Checkpointer(folder, engine, TrainingConfig(steps=1, warmup_steps=0))
        print("| parameters | the copy | the step waits | the thread writes | written | memory beyond the copy |")
        print("|---|---|---|---|---|---|")
        before = _memory("VmRSS")
        for step in (1, 2):
            waited, wrote = checkpointer.waited, checkpointer.wrote
            _set_back()
            began = time.monotonic()
            checkpointer.save(CheckpointFacts(step=step, position=step, optimizer_steps=1), b"")
            checkpointer.finish()
            seconds = time.monotonic() - began
            if checkpointer.failure:
                parser.exit(1, f"{checkpointer.failure}\n")
            size = sum(storage.size(uri) for uri in storage.files_below(storage.join(folder, f"step-{step:08d}")))
            print(
                f"| {sum(p.numel() for p in engine.model.parameters()):,} | {size / 2**30:.2f} GiB "
                f"| {checkpointer.waited - waited:.2f} s | {checkpointer.wrote - wrote:.1f} s "
                f"| {seconds:.1f} s after it began | {(_memory('VmHWM') - before - size) / 2**30:.2f} GiB |"
            )


if __name__ == "__main__":
    main()
