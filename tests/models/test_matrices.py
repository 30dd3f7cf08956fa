"""What parameters are, and which matrices lie in one parameter, of our own models and of Hugging Face's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.matrices import Layout, Role, roles_of
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import units_of
from tests.backbones import made

QKV = Layout(shares=(1, 1, 1))


def roles(backbone: Backbone) -> dict[str, Role]:
    return roles_of(backbone, backbone.blocks)


def layouts(backbone: Backbone, block: int = 0) -> dict[str, Layout]:
    """By the ends of the names of the matrices of a block, those that are not laid out as usual."""
    named = {name: role for name, role in roles(backbone).items() if role.kind == "matrices" and f".{block}." in name}
    assert len(named) >= 4
    return {name.split(f".{block}.")[1]: role.layout for name, role in named.items() if role.layout != Layout()}


def names(backbone: Backbone, kind: str) -> set[str]:
    return {name for name, role in roles(backbone).items() if role.kind == kind}


def test_a_tied_head_is_an_embedding_and_one_of_its_own_is_not():
    tied, untied = (Decoder(vocab_size=31, block_size=8, layers=1, tie_weights=tie) for tie in (True, False))
    assert names(tied, "embeddings") == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert names(tied, "others") == set()
    assert names(untied, "others") == {"lm_head.weight"}
    block = {f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert names(tied, "matrices") == block
    assert all(p.dim() < 2 for name, p in tied.named_parameters() if roles(tied)[name].kind == "vectors")


def fresh(family: str, **options: Any) -> PretrainedLM:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, **options}
    return PretrainedLM(architecture=family, options=sizes, vocab_size=31, block_size=16)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("decoder", {"attn.c_attn.weight": QKV}),
        ("decoder, swiglu", {"attn.c_attn.weight": QKV, "mlp.c_fc.weight": Layout(shares=(1, 1))}),
        (
            "gpt2",
            {
                "attn.c_attn.weight": Layout(transposed=True, shares=(1, 1, 1)),
                **{f"{name}.weight": Layout(transposed=True) for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
            },
        ),
        ("bloom", {"self_attention.query_key_value.weight": Layout(shares=(1, 1, 1), each=8)}),
        ("gpt_neox", {"attention.query_key_value.weight": Layout(shares=(1, 1, 1), each=8)}),
        ("falcon", {"self_attention.query_key_value.weight": Layout(shares=(4, 1, 1), each=8)}),  # one for all heads
        ("llama", {}),
    ],
)
def test_matrices_of_families(kind: str, found: dict[str, Layout]):
    assert layouts(made(kind)) == found


def test_grouped_keys_and_values_in_one_matrix():
    found = layouts(fresh("phi3", num_key_value_heads=2, pad_token_id=0))
    assert found == {
        "self_attn.qkv_proj.weight": Layout(shares=(2, 1, 1)),
        "mlp.gate_up_proj.weight": Layout(shares=(1, 1)),
    }


def by_index(matrix: Tensor, *rows: list[int]) -> list[Tensor]:
    return [matrix[index] for index in rows]


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        (Layout(), [[*range(12)]]),
        (Layout(shares=(4, 1, 1)), [[*range(8)], [8, 9], [10, 11]]),
        (Layout(shares=(1, 1, 1), each=2), [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
        (Layout(shares=(2, 1, 1), each=1), [[0, 1, 4, 5, 8, 9], [2, 6, 10], [3, 7, 11]]),
    ],
)
def test_pieces_are_views_of_the_rows(layout: Layout, rows: list[list[int]]):
    matrix = torch.randn(12, 5)
    for own, transposed in ((matrix, False), (matrix.T.contiguous(), True)):
        found = Layout(transposed, layout.shares, layout.each)
        pieces = [piece.flatten(0, 1) for piece in found.pieces(own)]
        assert all(torch.equal(x, y) for x, y in zip(pieces, by_index(matrix, *rows), strict=True))
        assert Layout.of(found.plain()) == found
    for piece in layout.pieces(matrix):
        piece.zero_()
    assert not matrix.any()


@pytest.mark.parametrize("kind", ["decoder, swiglu", "gpt2", "gpt_neox"])
def test_a_layout_holds_when_heads_and_neurons_go(kind: str):
    backbone = made(kind)
    before, first = layouts(backbone), _fused(backbone)
    pieces = before[first].pieces(_weight(backbone, first))
    for units in (units_of(backbone, "heads"), units_of(backbone, "neurons")):
        dead = torch.zeros(units.shape, dtype=torch.bool)
        dead[0, 1] = True
        units.remove(dead)
    assert layouts(backbone) == before
    K = pieces[0].shape[0] * pieces[0].shape[1] // 4 if kind != "decoder, swiglu" else 10
    for old, new in zip(pieces, before[first].pieces(_weight(backbone, first)), strict=True):
        rows = old.flatten(0, 1)
        assert torch.equal(new.flatten(0, 1), torch.cat([rows[:K], rows[2 * K :]]))


def _fused(backbone: Backbone) -> str:
    (name,) = [name for name, layout in layouts(backbone).items() if len(layout.shares) == 3]
    return name


def _weight(backbone: Backbone, name: str) -> nn.Parameter:
    return dict(backbone.blocks[0].named_parameters())[name]
