"""Attention probabilities and entropy, and to which model units belong; of every family: tests/contracts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_app.memory.model import MemoryLM
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import AttentionHeads, units_of

Build = Callable[[str], Backbone]


def test_entropy_of_sampled_rows_and_of_all(build: Build, ids: Tensor):
    heads = units_of(build("llama"), "heads")
    assert isinstance(heads, AttentionHeads)
    assert (heads.entropy(ids, rows=None) <= math.log(16)).all()
    sampled = heads.entropy(ids, rows=8, seed=3)
    assert torch.equal(sampled, heads.entropy(ids, rows=8, seed=3))
    assert not torch.equal(sampled, heads.entropy(ids, rows=8, seed=4))
    normalised = heads.entropy(ids, rows=8, normalised=True)
    assert (normalised > 0).all()
    assert (normalised <= 1 + 1e-6).all()


def test_probabilities_of_our_own_are_those_of_the_kernel(build: Build, ids: Tensor):
    """A head that reads values of its own position's number says what its probabilities say."""
    model = build("decoder, rotary")
    assert isinstance(model, Decoder)
    heads = units_of(model, "heads")
    assert isinstance(heads, AttentionHeads)
    probs, attention, seen = heads.attention_probs(ids), heads.attention[0], []
    attention.c_proj.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    values = []

    def remember(_module: object, _arguments: object, output: Tensor) -> None:
        values.append(output.unflatten(-1, (3, 4, 8))[:, :, 2].transpose(1, 2))

    attention.c_attn.register_forward_hook(remember)
    model(ids)
    said = seen[0].unflatten(-1, (4, 8)).transpose(1, 2)
    torch.testing.assert_close(probs[0] @ values[0], said, atol=1e-5, rtol=1e-4)


def test_units_belong_to_the_innermost_model(build: Build):
    model = build("decoder")
    wrapped = MemoryLM(model, [])
    assert units_of(wrapped, "heads") is units_of(model, "heads")
    assert set(wrapped.core.units) == {"heads"}
    before = wrapped.attention_width
    dead = torch.zeros(2, 4, dtype=torch.bool)
    dead[0, :2] = True
    units_of(wrapped, "heads").remove(dead)
    assert wrapped.attention_width == before * 6 / 8


def test_sdpa_is_on_again_after_an_analysis(build: Build, ids: Tensor):
    model = build("gpt2")
    assert isinstance(model, PretrainedLM)
    before = model.model.config._attn_implementation
    units_of(model, "heads").entropy(ids)  # type: ignore[attr-defined]
    assert model.model.config._attn_implementation == before == "sdpa"
