"""How fast a model writes, and what memory it takes."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from calm_core.errors import CalmError
from calm_core.generation.sampling import Sampling
from calm_core.generation.text import TextGenerator
from calm_core.store.facts import SpeedFacts
from calm_core.telemetry.processes import peak_bytes

_CPU_INFO = Path("/proc/cpuinfo")


def measure(
    generator: TextGenerator, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling, seed: int
) -> SpeedFacts:
    """How fast a model continues prompts; tokens are those that it has written, for a text may end early.

    Args:
        generator: What writes.
        prompts: The first one is also continued alone.
        max_new_tokens: Of each continuation, at most.
        sampling: Temperature, and how it is reached.
        seed: Of all noise; each prompt has its own.

    Raises:
        CalmError: There is no prompt.
    """
    if not prompts:
        raise CalmError("without a prompt nothing is written, so there is no speed to measure")
    device = generator.device
    _seconds_to_first_chunk(generator, prompts[0], sampling, seed)  # memory and kernels are there from now on
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first = _seconds_to_first_chunk(generator, prompts[0], sampling, seed)
    started = time.monotonic()
    seeds = [seed + number for number in range(len(prompts))]  # the same noise would lead all to the same words
    written = generator.write(prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seeds)
    seconds = time.monotonic() - started
    return SpeedFacts(
        tokens_per_second=sum(len(one.tokens) for one in written) / max(seconds, 1e-9),
        first_chunk_seconds=first,
        memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes(),
        device=device_name(device),
    )


def _seconds_to_first_chunk(generator: TextGenerator, prompt: str, sampling: Sampling, seed: int) -> float:
    """From a prompt to its first new tokens, with nothing else in the batch."""
    started = time.monotonic()
    next(generator.pieces([prompt], max_new_tokens=generator.model.chunk_size, sampling=sampling, seed=seed), None)
    return time.monotonic() - started  # the tokens are on the host: no work is left on the device


def device_name(device: torch.device) -> str:
    """What a device is called, for people; of a CPU also how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' * (threads > 1)}"


def _cpu_name() -> str:
    if _CPU_INFO.exists():  # Linux, where Python knows the architecture alone
        named = (line.partition(":") for line in _CPU_INFO.read_text().splitlines())
        if name := next((value.strip() for key, _, value in named if key.strip() == "model name"), ""):
            return name
    return platform.processor() or platform.machine()
