"""What heads and neurons of every family keep: masked is removed, undone is as before, a layout rebuilds the shape."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_app.models.backbone import Backbone
from lightning_app.models.generation import generate
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.losses import cross_entropy
from lightning_app.plasticity.gates import multiply_by_gates
from lightning_app.plasticity.kinds import AttentionHeads, units_of
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.surgery import state_like
from tests.backbones import FAMILIES, LAYERS, OF_ADAPTERS, made, prune, some_dead, some_ids, weights

Make = Callable[..., torch.optim.Optimizer]
KINDS: tuple[Kind, Kind] = ("heads", "neurons")
EACH = [*FAMILIES, "gpt2, adapters", "llama, adapters"]
both_kinds = pytest.mark.parametrize("kind", KINDS)
# The layout of each is that of another: decoder, llama (mistral has its shapes), and adapters of gpt2.
REPEATS = ("decoder without biases", "decoder, rotary", "mistral", "qwen2", "llama, adapters")
PARAMETERS = [pytest.param(name, marks=pytest.mark.slow if name in REPEATS else ()) for name in EACH]
MASKED = ("decoder", "llama", "gpt2, adapters")  # a mask is the same for all layouts
WAYS = [("heads", "mask"), ("heads", "remove"), ("neurons", "remove")]
each_way = pytest.mark.parametrize(
    ("family", "kind", "surgery"),
    [
        pytest.param(
            name,
            *way,
            marks=pytest.mark.slow if name in REPEATS or ("mask" in way and name not in MASKED) else (),
        )
        for name in EACH
        for way in WAYS
    ],
    indirect=["family"],
)


@pytest.fixture(scope="module", params=PARAMETERS)  # so that a worker has all tests of one family after each other
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> Backbone:
    return made(family)


@pytest.fixture
def ids() -> Tensor:
    """(3, 16)"""
    return some_ids()


def same(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


# Masked is removed


@both_kinds
def test_a_masked_model_is_the_smaller_one(model: Backbone, ids: Tensor, kind: Kind):
    whole, units = model(ids).detach(), units_of(model, kind)
    dead = some_dead(units)
    lost = sum(s.value.numel() for i, u in dead.nonzero().tolist() for s in units.slice_of(i, u))
    before, flops = sum(p.numel() for p in model.parameters()), model.flops_per_token(16)
    units.set_mask(~dead)
    masked = model(ids).detach()
    assert float((masked - whole).abs().max()) > 1e-2
    assert sum(p.numel() for p in model.parameters()) == before
    units.remove(dead)
    same(model(ids), masked)
    assert sum(p.numel() for p in model.parameters()) == before - lost
    assert model.flops_per_token(16) < flops
    assert torch.equal(units.mask, ~dead)
    assert torch.equal(units.present, ~dead)
    assert units.sparsity == pytest.approx(float(dead.float().mean()))
    assert not any(hook is multiply_by_gates for m in model.modules() for hook in m._forward_pre_hooks.values())


@both_kinds
def test_gates_of_one_change_nothing_and_of_zero_are_a_mask(model: Backbone, ids: Tensor, kind: Kind):
    whole, units = model(ids), units_of(model, kind)
    dead = some_dead(units)
    with units.gates():
        assert torch.equal(model(ids), whole)
    with units.gates() as leaves, torch.no_grad():
        for leaf, row in zip(leaves, dead, strict=True):
            leaf[row] = 0.0
        gated = model(ids)
    assert torch.equal(model(ids), whole)
    units.set_mask(~dead)
    assert torch.equal(model(ids), gated)
    units.set_mask(torch.ones(units.shape, dtype=torch.bool))
    assert torch.equal(model(ids), whole)


@both_kinds
def test_gates_of_each_sequence_reach_that_sequence(model: Backbone, ids: Tensor, kind: Kind):
    units = units_of(model, kind)
    whole = model(ids)
    units.open_gates()
    gates = torch.ones(3, *units.shape)
    gates[1, 0, 1] = 0.0
    units.set_gates(gates)
    found = model(ids)
    units.close_gates()
    assert torch.equal(found[[0, 2]], whole[[0, 2]])
    mask = torch.ones(units.shape, dtype=torch.bool)
    mask[0, 1] = False
    units.set_mask(mask)
    assert torch.equal(model(ids)[1], found[1])


@both_kinds
def test_in_two_steps_as_in_one(model: Backbone, ids: Tensor, kind: Kind):
    """The second removal meets positions that have moved."""
    other = copy.deepcopy(model)
    units, others = units_of(model, kind), units_of(other, kind)
    all_dead = some_dead(units, more=1)
    first = all_dead.clone()
    first[0, :1] = False
    units.remove(first)
    units.remove(all_dead)
    others.remove(all_dead)
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=0)
    assert torch.equal(model(ids), other(ids))


@both_kinds
def test_a_layer_of_which_all_are_dead(model: Backbone, ids: Tensor, kind: Kind):
    """One stays, masked, in every family; whatever its weights are."""
    units = units_of(model, kind)
    dead = some_dead(units)
    dead[0] = True
    units.set_mask(~dead)
    masked = model(ids)
    units.remove(dead)
    assert units.layers[0].present == [0]
    assert torch.equal(units.mask, ~dead)
    same(model(ids), masked)
    same(torch.cat(pieces(model, ids), dim=1), masked, atol=2e-5)
    with torch.no_grad():
        for part in units.layers[0].parts:
            part.parameter.add_(1.0)
    same(model(ids), masked)
    assert set(units.kept) == {(i, u) for i, u in dead.nonzero().tolist()}
    units.remove(dead)
    assert units.layers[0].present == [0]
    units.regrow(0, 2, "undo")
    units.remove(dead & ~torch.nn.functional.one_hot(torch.tensor(2), units.shape[1]).bool())
    assert units.layers[0].present == [2]
    assert int(units.mask[0].sum()) == 1


# Caches and padding, of heads and neurons together


def pieces(model: Backbone, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    cache, found = model.new_cache(len(ids)), []
    for at in range(0, ids.shape[1], 4):
        seen = None if mask is None else mask[:, : at + 4]
        found.append(model.logits(model.hidden(model.embed(ids[:, at : at + 4]), mask=seen, cache=cache).last))
    return found


@torch.no_grad()
def test_a_cache_and_left_padding_after_surgery_and_texts_of_the_masked_model(model: Backbone, ids: Tensor):
    lengths, texts = (16, 11, 5), []
    padded, mask = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for row, n in enumerate(lengths):
        padded[row, -n:], mask[row, -n:] = ids[row, :n], True
    expected: Tensor | None = None
    for surgery in ("mask", "remove"):
        for kind in KINDS:
            units = units_of(model, kind)
            prune(units, some_dead(units), surgery)
        logits = model(ids)
        same(logits, logits if expected is None else expected, atol=2e-5)
        expected = logits
        same(torch.cat(pieces(model, ids), dim=1), logits, atol=2e-5)
        for found in (model(padded, mask), torch.cat(pieces(model, padded, mask), dim=1)):
            for row, n in enumerate(lengths):
                same(found[row, -n:], logits[row, :n], atol=2e-5)
        texts.append(torch.stack(list(generate(model, ids[:, :6], GenerationOptions(8, temperature=0)))))
    assert torch.equal(*texts)


# The optimizer follows


def adamw(model: Backbone) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, eps=1e-4)


def train(model: Backbone, optimizer: torch.optim.Optimizer, steps: int, ids: Tensor) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(ids)[:, :-1], ids[:, 1:]).backward()
        optimizer.step()


@each_way
def test_undo_brings_back_weights_moments_and_logits_bit_for_bit(
    model: Backbone, ids: Tensor, kind: Kind, surgery: str
):
    optimizer, units = adamw(model), units_of(model, kind)
    train(model, optimizer, 2, ids)
    logits, before = model(ids), weights(model)
    moments = [{name: x.clone() for name, x in state_like(optimizer, p).items()} for p in model.parameters()]
    dead = some_dead(units)
    prune(units, dead, surgery, optimizer)
    assert not torch.equal(model(ids), logits)
    for i, unit in reversed(dead.nonzero().tolist()):
        units.regrow(i, unit, "undo", optimizer)
    assert units.mask.all()
    assert not units.kept
    assert torch.equal(model(ids), logits)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    after = [state_like(optimizer, p) for p in model.parameters()]
    torch.testing.assert_close(after, moments, rtol=0, atol=0)
    train(model, optimizer, 1, ids)  # the optimizer steps what is there
    assert any(not torch.equal(x, before[name]) for name, x in weights(model).items())


@each_way
def test_new_ones_change_nothing_yet_and_can_learn(family: str, model: Backbone, ids: Tensor, kind: Kind, surgery: str):
    optimizer, units = adamw(model), units_of(model, kind)
    train(model, optimizer, 1, ids)
    prune(units, some_dead(units), surgery, optimizer)
    logits, state = model(ids), torch.get_rng_state()
    units.regrow(1, 0, "new", optimizer)
    assert torch.equal(torch.get_rng_state(), state), "ranks, and a resumed run, would draw other weights"
    same(model(ids), logits)
    assert bool(units.mask[1, 0])
    fresh = units.slice_of(1, 0, optimizer)
    assert all(not x.any() for s in fresh for x in s.state.values())
    assert any(s.value.any() for s in fresh)
    train(model, optimizer, 2, ids)
    of_output = [
        s.value.any()
        for s, part in zip(units.slice_of(1, 0), units.layers[1].parts, strict=True)
        if part.module is units.layers[1].out and part.parameter.requires_grad
    ]
    assert of_output == ([] if family in OF_ADAPTERS else [True])  # else it is frozen, and what it reads is adapted


# Layouts and copies


@each_way
def test_a_layout_rebuilds_the_shape_for_the_weights_to_come(model: Backbone, ids: Tensor, kind: Kind, surgery: str):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    units = units_of(model, kind)
    prune(units, some_dead(units), surgery)
    found = units.layout()
    others = units_of(other, kind)
    others.remove(some_dead(others, more=1))  # and one more, that is to come back
    others.set_layout(found)
    assert torch.equal(others.mask, units.mask)
    assert torch.equal(others.present, units.present)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids), model(ids))


@each_way
def test_a_copy_has_gates_and_units_of_its_own(model: Backbone, ids: Tensor, kind: Kind, surgery: str):
    units = units_of(model, kind)
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[0, 0] = True
    prune(units, dead, surgery)
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
    same(other(ids), changed)
    with others.gates() as leaves:
        leaves[0].data.zero_()
        assert torch.equal(model(ids), expected)
    assert torch.equal(model(ids), expected)
    assert torch.equal(units.mask, ~dead)


# What heads say of themselves


def queries_per_unit(heads: AttentionHeads) -> int:
    """Query heads of a group."""
    module = heads.attention[0]
    size = module.head_dim if "head_dim" in vars(module) else module.head_size
    return heads.layers[0].in_out.index.shape[1] // int(size)


def entropies(probs: Tensor) -> Tensor:
    """(B, H, T, T) -> (H,) by the textbook, in float64."""
    p = probs.double()
    return -(p * p.clamp_min(1e-300).log()).sum(-1)[:, :, 1:].mean((0, 2))


def test_attention_is_causal_and_its_entropy_that_of_the_probabilities(model: Backbone, ids: Tensor):
    heads, plain = units_of(model, "heads"), model(ids)
    assert isinstance(heads, AttentionHeads)
    probs, each = heads.attention_probs(ids), queries_per_unit(heads)
    assert len(probs) == LAYERS
    for p in probs:
        assert p.shape == (3, heads.shape[1] * each, 16, 16)
        same(p.sum(-1), torch.ones(p.shape[:-1]))
        assert not p.triu(1).any()
        assert (p >= 0).all()
    found = heads.entropy(ids, rows=None)
    assert found.dtype == torch.float64
    expected = torch.stack([entropies(p).view(heads.shape[1], -1).mean(1) for p in probs])
    torch.testing.assert_close(found * 16 / 15, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(ids), plain)  # what was there for analysis alone is gone


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
