"""The step that `python -m benchmarks training` times ours against is the same step."""

import torch

from benchmarks.profile import OTHERS, milliseconds
from benchmarks.sizes import SMALL, models, written_plainly
from benchmarks.training import tiny_step
from calm_core.models.noise import SequenceNoise
from calm_core.training.tasks.calm import CalmTask


def test_the_plain_step_has_our_loss_and_gradients() -> None:
    calm, autoencoder = models(SMALL, head_layers=2, vocab_size=64)
    task = CalmTask(calm, autoencoder, pad_id=0)
    tokens = torch.randint(1, 64, (2, 32), generator=torch.Generator().manual_seed(0))

    def step() -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        calm.zero_grad()
        loss = task.loss(calm, tokens, SequenceNoise(range(2)), task.counts(tokens)).value
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in calm.parameters()]

    ours = step()
    with written_plainly():
        plain = step()
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


def test_a_profiled_step_has_every_kind_of_operation() -> None:
    """By torch's own names, which another version may change."""
    found = milliseconds(tiny_step())
    assert all(found.values()), found
    assert found[OTHERS] < sum(found.values()) * 0.9
