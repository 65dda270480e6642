"""One check on a GPU, in a process of its own: `python -m tests.gpu.checks NAME FOLDER DATASET`."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from calm_core.config import AutoencoderConfig, CalmConfig, EvaluationConfig, TransformerConfig
from calm_core.config.heads import HEADS
from calm_core.errors import Interrupted
from calm_core.evaluation.stage import evaluate
from calm_core.models.energy_score import energy_loss
from calm_core.models.heads.base import Targets
from calm_core.models.heads.make import make_head
from calm_core.models.layers import initialize
from calm_core.models.noise import SequenceNoise
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.training.launcher import Launcher, TorchrunLauncher
from calm_core.training.stage import train
from tests.training.faulty_ranks import ForkedLauncher

_SHAPE = {"hidden_size": 32, "intermediate_size": 48}
_LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}
_TRAINING = {
    "steps": 40, "warmup_steps": 4, "global_batch_size": 8, "micro_batch_size": 4, "learning_rate": 5e-3,
    "log_interval": 5, "validation_interval": 20, "validation_sequences": 8,
}  # fmt: skip


class _SameNoise(SequenceNoise):
    """Drawn on the CPU, where a GPU's generators would draw other numbers."""

    def __init__(self, device: str) -> None:
        super().__init__([0, 1])
        self.given_to = device

    def normal(self, *shape: int) -> Tensor:
        return super().normal(*shape).to(self.given_to)

    def uniform(self, *shape: int) -> Tensor:
        return super().uniform(*shape).to(self.given_to)


def energy_loss_is_that_of_a_cpu(folder: Path, dataset_uri: str) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(5000, 4, 16, generator=generator)  # more positions than a block has
    mean, deviations = (torch.randn(5000, *shape, generator=generator) for shape in ((16,), (6, 16)))
    found = []
    for device in ("cpu", "cuda"):
        own = samples.to(device).requires_grad_()
        loss = energy_loss(own, mean.to(device), deviations.to(device), 1.0)
        (grad,) = torch.autograd.grad(loss.sum(), own)
        found.append((loss.cpu(), grad.cpu()))
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-5)


def heads_compute_as_on_a_cpu(folder: Path, dataset_uri: str) -> None:
    size, latent = 32, 8
    for kind in HEADS.classes:
        found = []
        for device in ("cpu", "cuda"):
            torch.manual_seed(0)
            head = make_head(HEADS.parse({"kind": kind, "num_layers": 2}), size, latent).apply(initialize)
            head.to(device)
            hidden = torch.randn(2, 6, size, generator=torch.Generator().manual_seed(1))
            counted = torch.ones(2, 6, dtype=torch.bool)
            counted[1, 4:] = False
            mean = torch.randn(10, latent, generator=torch.Generator().manual_seed(2))
            draws = torch.randn(10, head.target_samples(), latent, generator=torch.Generator().manual_seed(3))
            targets = Targets(counted.to(device), mean.to(device), 0.1 * draws.to(device))
            loss = head.loss(hidden.to(device), targets, _SameNoise(device))
            loss.sum().backward()
            gradients = [p.grad.cpu() for p in head.parameters() if p.grad is not None]
            found.append([loss.detach().cpu(), *gradients])
        for cpu, gpu in zip(*found, strict=True):
            torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-4, msg=lambda text, kind=kind: f"{kind}: {text}")


def _train(config: Any, folder: Path, dataset_uri: str, **options: Any) -> Artifact[Any]:
    """Its rank is forked, without the half minute that torchrun takes to begin one, unless a launcher is given."""
    options = {"launcher": ForkedLauncher(), "seed": 0, "checkpoint_root": str(folder / "saved")} | options
    return train(config, dataset_uri, str(folder / "out"), **options)


def _autoencoder(
    folder: Path, dataset_uri: str, kind: str = "mlp", launcher: Launcher | None = None, **settings: Any
) -> Artifact[Any]:
    model = {"kind": kind, "chunk_size": 4, "latent_size": 8, **_SHAPE}
    config = AutoencoderConfig.model_validate(_TRAINING | settings | {"model": model})
    return _train(config, folder, dataset_uri, launcher=launcher or ForkedLauncher())


def _learned(model: Artifact[Any], loss: str) -> None:
    """In bf16, which `precision: auto` is on a GPU."""
    assert model.facts.precision == "bf16", model.facts.precision
    assert model.facts.bad_steps == 0
    losses = _curve(model, loss)
    assert losses[-1] < losses[0], losses


def _curve(model: Artifact[Any], name: str) -> list[float]:
    curves = [json.loads(line) for line in model.read("curves.jsonl").splitlines()]
    return [record[name] for record in curves]


def every_model_is_trained_and_scored(folder: Path, dataset_uri: str) -> None:
    for kind in ("mlp", "reading"):
        autoencoder = _autoencoder(folder / kind, dataset_uri, kind)
        _learned(autoencoder, "loss")
    for head in HEADS.classes:
        model = {"head": {"kind": head, "num_layers": 1}, **_LAYERS, **_SHAPE}
        config = CalmConfig.model_validate(_TRAINING | {"model": model})
        calm = _train(config, folder / head, dataset_uri, autoencoder_uri=autoencoder.uri)
        _learned(calm, f"{head}_loss")
    transformer = _train(
        TransformerConfig.model_validate(_TRAINING | {"model": {**_LAYERS, **_SHAPE}}), folder / "tokens", dataset_uri
    )
    _learned(transformer, "cross_entropy")
    scoring = EvaluationConfig(samples=4, max_sequences=8, prompts=("the river",), prompt_tokens=4)
    scores = [
        evaluate(scoring, dataset_uri, calm.uri, str(folder / name), seed=0, autoencoder_uri=autoencoder.uri).facts
        for name in ("scores", "again")
    ]
    assert scores[0].brierlm == scores[1].brierlm, scores
    evaluate(scoring, dataset_uri, transformer.uri, str(folder / "baseline"), seed=0)


def precisions_agree(folder: Path, dataset_uri: str) -> None:
    found = {}
    for precision, stage in (("fp32", 0), ("bf16-mixed", 0), ("bf16", 1), ("bf16", 3)):
        settings = {"precision": precision, "zero_stage": stage}
        model = _autoencoder(folder / f"{precision}{stage}", dataset_uri, **settings)
        found[precision, stage] = _curve(model, "loss")
    plain = found["fp32", 0]
    for case, losses in found.items():
        assert all(abs(a - b) < 0.05 * b for a, b in zip(losses, plain, strict=True)), (case, losses, plain)


def a_stopped_training_goes_on(folder: Path, dataset_uri: str) -> None:
    settings = {"steps": 400, "checkpoint_interval": 20, "log_interval": 20, "validation_interval": 400}
    whole = _autoencoder(folder / "whole", dataset_uri, **settings)
    by_torchrun = TorchrunLauncher()
    stopping = threading.Thread(target=_stop_once_saved, args=(folder / "stopped" / "saved",))
    stopping.start()
    try:
        _autoencoder(folder / "stopped", dataset_uri, launcher=by_torchrun, **settings)
        raise AssertionError("it was not stopped")
    except Interrupted:
        stopping.join()
    goes_on = _autoencoder(folder / "stopped", dataset_uri, launcher=by_torchrun, **settings)
    own, other = (safetensors.torch.load(model.read("weights.safetensors")) for model in (whole, goes_on))
    for name in own:
        torch.testing.assert_close(own[name], other[name], rtol=1e-2, atol=1e-3)


def _stop_once_saved(root: Path) -> None:
    while not any("/step-" in uri and uri.endswith("/manifest.json") for uri in storage.files_below(str(root))):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


ALL: dict[str, Callable[[Path, str], None]] = {
    check.__name__: check
    for check in (
        energy_loss_is_that_of_a_cpu,
        heads_compute_as_on_a_cpu,
        every_model_is_trained_and_scored,
        precisions_agree,
        a_stopped_training_goes_on,
    )
}


if __name__ == "__main__":
    ALL[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
