"""The weights that a training in bf16 leaves are those that its optimiser stepped, in fp32."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from calm_core.config import AutoencoderConfig
from calm_core.training.stage import train

SETTINGS = {"steps": 3, "warmup_steps": 0, "global_batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}
MODEL = {"chunk_size": 4, "latent_size": 8, "hidden_size": 32, "intermediate_size": 48}
MOVED = 3 * 1e-3  # how far AdamW can move a weight in three steps, about


def weights_of(dataset_uri: str, folder: Path, **settings: object) -> dict[str, torch.Tensor]:
    config = AutoencoderConfig.model_validate(SETTINGS | {"model": MODEL} | settings)
    artifact = train(config, dataset_uri, str(folder / "out"), seed=0, checkpoint_root=str(folder / "checkpoints"))
    return safetensors.torch.load(artifact.read("weights.safetensors"))


@pytest.fixture(scope="module")
def plain(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the same training in fp32."""
    return weights_of(dataset_uri, tmp_path_factory.mktemp("fp32"), precision="fp32")


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_bf16_training_leaves_fp32_weights(
    dataset_uri: str, tmp_path: Path, plain: dict[str, torch.Tensor], zero_stage: int
) -> None:
    weights = weights_of(dataset_uri, tmp_path / "bf16", precision="bf16", zero_stage=zero_stage)
    assert weights.keys() == plain.keys()
    for name, value in weights.items():
        assert value.dtype == torch.float32, name
        # Each is its own: within the rounding of its initial value, and two trainings' steps.
        assert torch.allclose(value, plain[name], rtol=2**-8, atol=2 * MOVED), name
    matrices = torch.cat([value.flatten() for value in weights.values() if value.ndim == 2])
    assert (matrices != matrices.bfloat16().float()).float().mean() > 0.5
