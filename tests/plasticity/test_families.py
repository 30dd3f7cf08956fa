"""Every family shows its heads and neurons; one that nobody knows is refused with the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.families import ATTENTION, FEED_FORWARD, find_layers
from lightning_app.plasticity.kinds import AttentionHeads, Neurons

Build = Callable[[str], Backbone]
SHAPES = {  # (layers, heads or groups), (layers, neurons)
    "decoder": ((2, 4), (2, 128)),
    "decoder without biases": ((2, 4), (2, 128)),
    "decoder, rotary": ((2, 4), (2, 96)),
    "decoder, swiglu": ((2, 4), (2, 96)),
    "gpt2": ((2, 4), (2, 128)),
    "opt": ((2, 4), (2, 40)),
    "bloom": ((2, 4), (2, 128)),
    "gpt_neox": ((2, 4), (2, 40)),
    "llama": ((2, 4), (2, 40)),
    "mistral": ((2, 4), (2, 40)),
    "qwen2": ((2, 4), (2, 40)),
}


@pytest.mark.parametrize("family", SHAPES)
def test_all_units_are_found(build: Build, family: str):
    model = build(family)
    assert (AttentionHeads(model).shape, Neurons(model).shape) == SHAPES[family]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("layouts", [ATTENTION, FEED_FORWARD], ids=["attention", "feed forward"])
def test_units_share_out_each_matrix_without_rest(build: Build, family: str, layouts: list):
    """Each position of a part belongs to exactly one unit, and each matrix of a layer is a part."""
    for module, layer in find_layers(build(family), layouts):
        names = {id(part.parameter) for part in layer.parts}
        for part in layer.parts:
            assert sorted(part.index.flatten().tolist()) == list(range(part.parameter.shape[part.dim]))
        into = {part.module for part in layer.parts} - {layer.out}
        assert len(into) == len([child for child in module.children() if _is_matrix(child)]) - 1
        for matrix in into:  # the bias of the output projection is nobody's
            assert all(id(parameter) in names for parameter in matrix.parameters())


def _is_matrix(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("falcon", {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3}),
        ("gpt_bigcode", {"n_layer": 2, "n_embd": 24, "n_head": 3}),
    ],
)
def test_a_family_that_is_laid_out_otherwise_is_refused_with_the_remedy(family: str, options: dict):
    model = PretrainedLM(architecture=family, options=options, vocab_size=31, block_size=16)
    with pytest.raises(InputError, match=r"families\.py"):
        AttentionHeads(model)


class Strange(nn.Module):
    """Attention whose matrices have names of their own."""

    def __init__(self, own: nn.Module):
        super().__init__()
        self.everything, self.back = own.c_attn, own.c_proj


@pytest.mark.parametrize("blocks", [1, 2], ids=["one block", "all blocks"])
def test_an_unknown_layout_is_refused_and_says_how_to_write_one(blocks: int):
    """Also where some of its layers are known: heads that are not shown would be forgotten without a word."""
    model = Decoder(vocab_size=31, block_size=16, embedding_dim=32, layers=2, heads=4)
    for block in model.transformer["h"][:blocks]:
        block.attn = Strange(block.attn)
    with pytest.raises(InputError, match=r"families\.py \(a class with `match`"):
        AttentionHeads(model)


def test_neurons_of_an_unknown_layout_are_refused_too():
    model = Decoder(vocab_size=31, block_size=16, embedding_dim=32, layers=2, heads=4)
    for block in model.transformer["h"]:
        block.mlp = Strange(block.attn)
    with pytest.raises(InputError, match=r"0 feed-forward layers.*families\.py"):
        Neurons(model)
