"""Which continuations are one node, and which are dropped."""

import torch

from calm_core.config import BackboneConfig
from calm_core.evaluation.continuations import Continuations
from calm_core.models.backbone import Backbone
from calm_core.models.layers import freeze


def test_the_example_in_the_modules_docstring() -> None:
    """One sequence, two positions, two samples; 7 7 3 5 are appended, of which 3 alone is true."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    backbone = Backbone(BackboneConfig(**shape), 10)
    freeze(backbone)
    context = torch.tensor([[1, 2]])
    _, prefix = backbone(backbone.embed_tokens(context))
    tree = Continuations(backbone, 10, prefix, torch.tensor([0, 1]), batch=1, samples=2)
    assert tree.node_A.tolist() == [0, 0, 1, 1]
    assert tree.by_node(tree.alive_A).tolist() == [[0, 1], [2, 3]]

    hidden = tree.advance(
        torch.tensor([[7], [7], [3], [5]]),
        lambda token: backbone.embed_tokens(token.squeeze(-1)),
        torch.tensor([False, False, True, False]),
    )
    assert tree.alive_A.tolist() == [0, 1, 2]
    assert tree.node_A.tolist() == [0, 0, 1]
    rows = tree.by_node(10 + tree.alive_A)  # the second node has one continuation, so one of its places is empty
    assert rows.tolist() == [[10, 11], [12, 0]]
    assert tree.by_continuation(rows).tolist() == [10, 11, 12]
    for node, text in enumerate([[1, 7], [1, 2, 3]]):
        expected, _ = backbone(backbone.embed_tokens(torch.tensor([text])))
        torch.testing.assert_close(hidden[node], expected[0, -1])


def test_codes_of_long_chunks_do_not_overflow() -> None:
    """Five tokens of 2^17: as one number the first would be lost beyond 64 bits, and the two taken for one."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    backbone = Backbone(BackboneConfig(**shape), 2)
    freeze(backbone)
    _, prefix = backbone(torch.zeros(1, 1, 8))
    tree = Continuations(backbone, 2**17, prefix, torch.tensor([0]), batch=1, samples=2)
    tree.advance(torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]), lambda chunks: torch.zeros(len(chunks), 8))
    assert tree.node_A.tolist() == [0, 1]
