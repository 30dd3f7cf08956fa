"""Attention probabilities and entropy of every family, before and after heads are gone; models and their copies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_app.memory.model import MemoryLM
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import AttentionHeads, units_of

Build = Callable[[str], Backbone]


def queries_per_unit(heads: AttentionHeads) -> int:
    """Query heads of a group."""
    module = heads.attention[0]
    size = module.head_dim if "head_dim" in vars(module) else module.head_size
    return heads.layers[0].in_out.index.shape[1] // int(size)


def entropies(probs: Tensor) -> Tensor:
    """(B, H, T, T) -> (H,) by the textbook, in float64."""
    p = probs.double()
    return -(p * p.clamp_min(1e-300).log()).sum(-1)[:, :, 1:].mean((0, 2))


def test_probabilities_are_causal_and_sum_to_one(model: Backbone, ids: Tensor):
    heads = units_of(model, "heads")
    assert isinstance(heads, AttentionHeads)
    plain = model(ids)
    probs = heads.attention_probs(ids)
    assert len(probs) == 2
    for p in probs:
        assert p.shape == (3, heads.shape[1] * queries_per_unit(heads), 16, 16)
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        assert not p.triu(1).any()
        assert (p >= 0).all()
    assert torch.equal(model(ids), plain)  # what was there for analysis alone is gone


def test_entropy_is_that_of_the_probabilities(model: Backbone, ids: Tensor):
    heads = units_of(model, "heads")
    assert isinstance(heads, AttentionHeads)
    expected = [entropies(p).view(heads.shape[1], -1).mean(1) for p in heads.attention_probs(ids)]
    found = heads.entropy(ids, rows=None)
    assert found.dtype == torch.float64
    whole = torch.cat([p[:, :, :1] for p in heads.attention_probs(ids)])
    assert torch.equal(whole[..., 0], torch.ones_like(whole[..., 0]))  # the first position: no entropy
    torch.testing.assert_close(found * 16 / 15, torch.stack(expected), rtol=1e-5, atol=1e-6)
    sampled = heads.entropy(ids, rows=8, seed=3)
    assert torch.equal(sampled, heads.entropy(ids, rows=8, seed=3))
    assert not torch.equal(sampled, heads.entropy(ids, rows=8, seed=4))
    normalised = heads.entropy(ids, rows=8, normalised=True)
    assert (normalised > 0).all()
    assert (normalised <= 1 + 1e-6).all()
    assert (found <= math.log(16)).all()


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


def test_a_removed_head_has_no_entropy_and_the_others_keep_theirs(model: Backbone, ids: Tensor):
    heads = units_of(model, "heads")
    assert isinstance(heads, AttentionHeads)
    dead = torch.zeros(heads.shape, dtype=torch.bool)
    dead[1, 1] = True  # of the last layer, so that no other head reads something else
    before, probs = heads.entropy(ids), heads.attention_probs(ids)
    heads.remove(dead)
    after = heads.entropy(ids)
    assert after[1, 1].isnan()
    torch.testing.assert_close(after[~dead], before[~dead], rtol=1e-5, atol=1e-6)
    each = queries_per_unit(heads)
    left = [h for h in range(probs[1].shape[1]) if h // each != 1]
    torch.testing.assert_close(heads.attention_probs(ids)[1], probs[1][:, left], rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("removes", [True, False], ids=["removed", "masked"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_copy_has_gates_and_units_of_its_own(model: Backbone, ids: Tensor, kind: str, removes: bool):
    units = units_of(model, kind)
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[0, 0] = True
    units.set_mask(~dead)
    if removes:
        units.remove(dead)
    expected = model(ids)
    other = copy.deepcopy(model)
    others = units_of(other, kind)
    assert others is not units
    assert torch.equal(others.mask, ~dead)
    assert torch.equal(other(ids), expected)
    further = dead.clone()
    further[1, 1] = True
    others.set_mask(~further)
    changed = other(ids)
    assert not torch.equal(changed, expected)
    assert torch.equal(model(ids), expected)
    others.remove(further)
    torch.testing.assert_close(other(ids), changed, atol=1e-5, rtol=0)
    with others.gates() as leaves:
        leaves[0].data.zero_()
        assert torch.equal(model(ids), expected)
    assert torch.equal(model(ids), expected)
    assert torch.equal(units.mask, ~dead)


def test_sdpa_is_on_again_after_an_analysis(build: Build, ids: Tensor):
    model = build("gpt2")
    assert isinstance(model, PretrainedLM)
    before = model.model.config._attn_implementation
    units_of(model, "heads").entropy(ids)  # type: ignore[attr-defined]
    assert model.model.config._attn_implementation == before == "sdpa"
