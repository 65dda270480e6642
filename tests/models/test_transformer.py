"""The token-level baseline, and the options of the backbone that it shares with CALM."""

import pytest
import torch
import torch.nn.functional as F

from calm_core.config import TransformerModelConfig
from calm_core.models.backbone import Backbone
from calm_core.models.transformer import Transformer

V, B, T = 19, 2, 9


def make() -> Transformer:
    torch.manual_seed(0)
    config = TransformerModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    return Transformer(config, V)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(1))
    real = torch.ones(B, T, dtype=torch.bool)
    real[0, 5:7], real[1, -1] = False, False
    return tokens, real


def test_the_loss_is_the_cross_entropy_of_the_next_real_token() -> None:
    model = make()
    tokens, real = batch()
    loss, correct = model(tokens, real)
    hidden, _ = model.transformer(model.embed(tokens[:, :-1]))
    logits, counted = model.lm_head(hidden), real[:, 1:]
    expected = F.cross_entropy(logits[counted], tokens[:, 1:][counted], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert int(correct) == int((logits.argmax(-1) == tokens[:, 1:])[counted].sum())


def test_a_later_token_changes_no_earlier_state() -> None:
    model = make()
    tokens, _ = batch()
    changed = tokens.clone()
    changed[:, 5] = tokens[:, 5] % (V - 1) + 1
    first, second = (model.transformer(model.embed(x))[0] for x in (tokens, changed))
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.equal(first[:, 5:], second[:, 5:])


def checkpointed(backbone: Backbone) -> None:
    backbone.activation_checkpointing = True


def compiled(backbone: Backbone) -> None:
    for layer in backbone.layers:
        layer.compile(backend="aot_eager")  # traces forward and backward as the default does, without a C++ compiler


@pytest.mark.parametrize("option", [checkpointed, compiled])
def test_options_of_the_backbone_change_neither_loss_nor_gradients(option: object) -> None:
    assert callable(option)
    plain, other = make(), make()
    option(other.transformer)
    for model in (plain, other):
        loss, _ = model(*batch())
        loss.backward()
    for (name, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-5)


def test_checkpointed_activations_are_not_kept() -> None:
    """What autograd saves: with checkpoints each layer's input, not what is computed inside."""
    sizes = []
    for option in (lambda backbone: None, checkpointed):
        model, saved = make(), []
        option(model.transformer)
        pack = lambda x, kept=saved: kept.append(x.numel()) or x  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(*batch())
        sizes.append(sum(saved))
    assert sizes[1] < sizes[0] / 3
