"""Units that stay dead, follow the optimizer and are refused; what every family keeps: tests/contracts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import MASK, Backbone
from lightning_app.models.losses import cross_entropy
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.surgery import state_like
from lightning_app.plasticity.units import Units
from tests.backbones import prune, some_dead, weights

Build = Callable[[str], Backbone]
both_kinds = pytest.mark.parametrize("kind", ["heads", "neurons"])
each_way = pytest.mark.parametrize("surgery", ["mask", "remove"])


# Dead is dead


def train(
    model: Backbone, optimizer: torch.optim.Optimizer, steps: int, ids: Tensor, scheduler: Any = None, clip: float = 0
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(ids)[:, :-1], ids[:, 1:]).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("family", ["decoder, swiglu", "opt"])
@both_kinds
def test_a_masked_unit_stays_dead_over_many_steps(build: Build, ids: Tensor, family: str, kind: Kind):
    model = build(family)
    units = units_of(model, kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 3, ids)  # momentum
    dead = some_dead(units)
    units.set_mask(~dead)
    said: list[Tensor] = []
    for layer in units.layers:  # behind the gates
        layer.out.register_forward_pre_hook(lambda _module, arguments: said.append(arguments[0]))
    train(model, optimizer, 12, ids)
    assert len(said) == 24
    for call, x in enumerate(said):
        of_units = x.unflatten(-1, (units.shape[1], -1))
        alive = ~dead[call % 2]
        assert not of_units[..., ~alive, :].any()
        assert of_units[..., alive, :].any()
    before, parts = model(ids), [(i, part) for i, layer in enumerate(units.layers) for part in layer.parts]
    with torch.no_grad():
        for i, part in parts:
            at = part.index[dead[i]].flatten()
            part.parameter.index_fill_(part.dim, at, 7.0)
    assert torch.equal(model(ids), before)
    assert torch.equal(units.mask, ~dead)


# The optimizer follows


def adamw(model: Backbone, **options: Any) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    # A bias of keys has no gradient but rounding, which a usual eps would blow up to whole steps.
    return torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.1, eps=1e-4, **options)


def sgd(model: Backbone, **_options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


@both_kinds
@pytest.mark.parametrize(
    ("make", "family"),
    [
        (adamw, "gpt2"),
        (sgd, "decoder, rotary"),
        pytest.param(adamw, "decoder, rotary", marks=pytest.mark.slow),
        pytest.param(sgd, "gpt2", marks=pytest.mark.slow),
    ],
)
def test_the_next_steps_are_those_of_the_masked_model(
    build: Build, ids: Tensor, family: str, kind: Kind, make: Callable[..., torch.optim.Optimizer]
):
    masked, clip = build(family), 1.0
    of_masked = make(masked, fused=True)
    train(masked, of_masked, 4, ids, clip=clip)
    cut = copy.deepcopy(masked)
    of_cut = make(cut, fused=True)
    of_cut.load_state_dict(copy.deepcopy(of_masked.state_dict()))
    units, others = units_of(cut, kind), units_of(masked, kind)
    dead = some_dead(units)
    others.set_mask(~dead)
    units.remove(dead, of_cut)
    for model, optimizer in ((masked, of_masked), (cut, of_cut)):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        train(model, optimizer, 15, ids, schedule, clip)
    others.remove(dead, of_masked)  # what is left of the masked one, for comparison
    torch.testing.assert_close(weights(cut), weights(masked), atol=2e-6, rtol=0)
    theirs = [p for group in of_cut.param_groups for p in group["params"]]
    assert {id(p) for p in theirs} == {id(p) for p in cut.parameters()}
    assert set(of_cut.state) == set(theirs)
    for one, two in zip(cut.parameters(), masked.parameters(), strict=True):
        state, other = state_like(of_cut, one), state_like(of_masked, two)
        assert state.keys() == other.keys()
        assert state
        for name, x in state.items():
            assert x.shape == one.shape
            torch.testing.assert_close(x, other[name], atol=1e-5, rtol=1e-3)


@both_kinds
@each_way
@pytest.mark.parametrize("make", [adamw, sgd])
def test_undo_brings_back_one_while_others_go_on_learning(
    build: Build, ids: Tensor, kind: Kind, surgery: str, make: Callable[..., torch.optim.Optimizer]
):
    model = build("decoder")
    optimizer, units = make(model), units_of(model, kind)
    train(model, optimizer, 2, ids)
    kept = units.slice_of(1, 2, optimizer)
    prune(units, some_dead(units), surgery, optimizer)
    train(model, optimizer, 3, ids)
    units.regrow(1, 2, "undo", optimizer)
    for now, then in zip(units.slice_of(1, 2, optimizer), kept, strict=True):
        assert torch.equal(now.value, then.value)
        assert now.state.keys() == then.state.keys() != set()
        assert all(torch.equal(now.state[name], x) for name, x in then.state.items())


def test_new_ones_differ_from_each_other(build: Build):
    units = units_of(build("decoder"), "heads")
    units.remove(some_dead(units))
    for i, unit in ((1, 0), (1, 2), (0, 2)):
        units.regrow(i, unit, "new")
    fresh = [units.slice_of(i, unit)[0].value for i, unit in ((1, 0), (1, 2), (0, 2))]
    assert not torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])


def test_what_cannot_be_regrown_is_refused(build: Build):
    units = units_of(build("decoder"), "heads")
    with pytest.raises(InputError, match="head 1 of layer 0 is alive"):
        units.regrow(0, 1)
    units.remove(some_dead(units), keep=False)
    with pytest.raises(InputError, match="head 2 of layer 1 was not kept"):
        units.regrow(1, 2)


def test_an_optimizer_with_state_of_another_shape_is_refused_before_anything_is_cut(build: Build, ids: Tensor):
    model = build("decoder")
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, 1, ids)
    units, before = units_of(model, "heads"), weights(model)
    with pytest.raises(InputError, match=r"Adafactor keeps 'row_var'.*use AdamW or SGD, or surgery: mask"):
        units.remove(some_dead(units), optimizer)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    assert units.present.all()


def test_kept_on_the_cpu_and_through_plain_types(build: Build, ids: Tensor):
    model = build("decoder")
    optimizer, units = adamw(model), units_of(model, "heads")
    train(model, optimizer, 1, ids)
    logits = model(ids)
    units.remove(some_dead(units), optimizer)
    other = copy.deepcopy(model)
    of_other = adamw(other)
    of_other.load_state_dict(optimizer.state_dict())
    others = units_of(other, "heads")
    others.kept = {}
    others.load_kept_state(units.kept_state())
    for i, unit in some_dead(units).nonzero().tolist():
        others.regrow(i, unit, "undo", of_other)
    assert torch.equal(other(ids), logits)


# Layouts


def test_a_layout_of_another_shape_is_refused_with_both(build: Build):
    units = units_of(build("decoder"), "heads")
    with pytest.raises(InputError, match="2 layers of 8 heads, this one 2 of 4"):
        units.set_layout({"shape": [2, 8], "present": [[0], [0]], "masked": [[], []]})


def test_a_mask_travels_in_the_state_and_gates_do_not(build: Build):
    model = build("decoder")
    units = units_of(model, "heads")
    names = set(model.state_dict())
    with units.gates():
        pass
    assert set(model.state_dict()) == names
    units.set_mask(~some_dead(units))
    assert {name.split(".")[-1] for name in set(model.state_dict()) - names} == {MASK}


def test_masks_in_half_precision(build: Build, ids: Tensor):
    model = build("decoder").bfloat16()
    units = units_of(model, "heads")
    units.set_mask(~some_dead(units))
    masked = model(ids)
    assert masked.dtype == torch.bfloat16
    units.remove(some_dead(units))
    torch.testing.assert_close(model(ids), masked, atol=0.05, rtol=0)


def test_layers_of_unequal_width_are_refused(build: Build):
    model = build("decoder")
    units = units_of(model, "heads")
    units.layers[0].n = 3
    with pytest.raises(InputError, match=r"\[3, 4\] heads"):
        Units(model, units.layers, "heads")


def frozen_names(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[bool]:
    return [any(p is q for group in optimizer.param_groups for q in group["params"]) for p in parameters]


def test_frozen_parameters_stay_frozen_and_out_of_the_optimizer(build: Build, ids: Tensor):
    model = build("decoder")
    units = units_of(model, "heads")
    attention = units.layers[0].parts[0].module
    attention.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    train(model, optimizer, 1, ids)
    units.remove(some_dead(units), optimizer)
    assert not any(p.requires_grad for p in attention.parameters())
    assert frozen_names(optimizer, list(model.parameters())) == [p.requires_grad for p in model.parameters()]
    train(model, optimizer, 1, ids)
