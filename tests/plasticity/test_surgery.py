"""Surgery on one layer by literal values: which rows, columns and moments stay, go and come; tests of whole models
are in tests/contracts/test_units.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_app.errors import InputError
from lightning_app.plasticity.layout import Layer, Part
from lightning_app.plasticity.surgery import move, new_slices, slice_of, state_like

ROWS = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]


def three_units() -> tuple[Layer, torch.optim.Adam]:
    """Unit u is row u of `into` and column u of `out`; the optimizer has made a step."""
    into, out = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    index = torch.arange(3).view(3, 1)
    layer = Layer(
        out, [Part(into, "weight", 0, index), Part(out, "weight", 1, index, is_input=True)], [(out, "n", 2)], 3
    )
    optimizer = torch.optim.Adam([into.weight, out.weight], lr=0.0)
    for part in layer.parts:
        values = torch.tensor(ROWS)
        part.parameter.data = values if part.dim == 0 else values.T.contiguous()
        part.parameter.grad = part.parameter.data.clone()
    optimizer.step()
    return layer, optimizer


def moments(optimizer: torch.optim.Adam, part: Part) -> torch.Tensor:
    return state_like(optimizer, part.parameter)["exp_avg"]


def test_positions_move_together():
    part = Part(nn.Linear(2, 6), "weight", 0, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert part.positions([0, 2]).tolist() == [[0, 2], [1, 3]]
    assert part.positions([0, 1, 2]).tolist() == part.index.tolist()


def test_what_stays_keeps_its_weights_and_moments():
    layer, optimizer = three_units()
    into, out = layer.parts
    move(layer, [0, 2], {}, optimizer)
    assert into.parameter.tolist() == [ROWS[0], ROWS[2]]
    assert out.parameter.T.tolist() == [ROWS[0], ROWS[2]]
    torch.testing.assert_close(moments(optimizer, into), into.parameter * 0.1)
    assert (into.module.out_features, out.module.in_features, out.module.n) == (2, 2, 4)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert held == [id(into.parameter), id(out.parameter)]
    assert len(optimizer.state) == 2


def test_a_unit_goes_and_comes_back_as_it_was():
    layer, optimizer = three_units()
    slices = slice_of(layer, 1, optimizer)
    move(layer, [0, 2], {}, optimizer)
    move(layer, [0, 1, 2], {1: slices}, optimizer)
    for part in layer.parts:
        assert part.parameter.tolist() == (ROWS if part.dim == 0 else torch.tensor(ROWS).T.tolist())
        torch.testing.assert_close(moments(optimizer, part), part.parameter * 0.1)


def test_a_new_unit_says_nothing_yet_and_is_the_same_on_all_ranks():
    layer, _ = three_units()
    into, out = new_slices(layer, seed=1)
    assert into.value.shape == (1, 2)
    assert into.value.abs().min() > 0
    assert out.value.tolist() == [[0], [0]]
    assert torch.equal(new_slices(layer, seed=1)[0].value, into.value)
    assert not torch.equal(new_slices(layer, seed=2)[0].value, into.value)


def test_state_of_another_shape_cannot_be_cut():
    layer, optimizer = three_units()
    parameter = layer.parts[0].parameter
    optimizer.state[parameter]["exp_avg"] = torch.zeros(2)
    with pytest.raises(InputError, match=r"Adam keeps 'exp_avg' of shape \(2,\) for a parameter of shape \(3, 2\)"):
        state_like(optimizer, parameter)
