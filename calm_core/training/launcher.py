"""Starts the ranks of a training run with torchrun and waits for them."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationInfo, field_validator

from calm_core.config import AutoencoderConfig, CalmConfig, TrainingConfig, TransformerConfig
from calm_core.errors import CalmError

ERROR_NAME = "error.txt"

ModelKind = Literal["autoencoder", "calm", "transformer"]
CONFIGS: dict[ModelKind, type[TrainingConfig]] = {
    "autoencoder": AutoencoderConfig,
    "calm": CalmConfig,
    "transformer": TransformerConfig,
}


class WorkerSpec(BaseModel):
    """What the ranks train, written to a file that each of them reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ModelKind
    config: SerializeAsAny[TrainingConfig]
    dataset_uri: str
    autoencoder_uri: str = ""
    output_uri: str
    checkpoint_root: str
    seed: int
    run_id: str = ""

    @field_validator("config", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> TrainingConfig:
        return CONFIGS[info.data["kind"]].model_validate(value)

    @property
    def stage(self) -> str:
        """Name under which progress is reported."""
        return f"train-{self.kind}"


def launch(spec: WorkerSpec) -> None:
    """Run the training on this node's GPUs, or in one process on CPU; output goes to this process's.

    SIGTERM and SIGINT are passed on, so that the ranks save a checkpoint before they end.

    Raises:
        CalmError: A rank failed; the message is the rank's own line.
    """
    import torch  # costs a second: only where ranks are counted

    processes = spec.config.processes or torch.cuda.device_count() or 1
    _check_ranks(spec, processes, torch.cuda.device_count())
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="calm-training-") as folder:
        spec_path = Path(folder) / "spec.json"
        spec_path.write_text(spec.model_dump_json())
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "calm_core.training.worker", str(spec_path)]
        with subprocess.Popen(command, env=environment) as process, _passing_on(process):
            code = process.wait()
        error_path = Path(folder) / ERROR_NAME
        if error_path.exists():
            raise CalmError(error_path.read_text().splitlines()[0])
        if code != 0:
            raise CalmError(f"{spec.stage}: a rank ended with exit code {code}; its last lines are in the log")


def _check_ranks(spec: WorkerSpec, processes: int, gpus: int) -> None:
    if gpus and processes > gpus:
        raise CalmError(f"{spec.stage}: processes is {processes}, this machine has {gpus} GPUs; lower processes")
    if spec.config.global_batch_size % (spec.config.micro_batch_size * processes):
        raise CalmError(
            f"{spec.stage}: global_batch_size ({spec.config.global_batch_size}) must be a multiple of "
            f"micro_batch_size x processes ({spec.config.micro_batch_size} x {processes})"
        )


class _passing_on:
    """Passes SIGTERM and SIGINT on to a process while the block runs."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        def pass_on(signum: int, frame: FrameType | None) -> None:
            self._process.send_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, pass_on)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
