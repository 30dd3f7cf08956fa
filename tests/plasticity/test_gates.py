"""Gates on one linear layer of two units with two numbers each, by literal values."""

from __future__ import annotations

import torch
from torch import nn

from lightning_app.models.backbone import GATE, MASK
from lightning_app.plasticity.gates import Gates
from lightning_app.plasticity.layout import Layer, Part

X = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


def one_layer() -> tuple[nn.Linear, Gates]:
    out = nn.Linear(4, 4, bias=False)
    nn.init.eye_(out.weight)
    index = torch.arange(4).view(2, 2)
    return out, Gates([Layer(out, [Part(out, "weight", 1, index, is_input=True)], [], 2)])


def test_a_masked_unit_is_multiplied_by_0_and_a_whole_layer_has_no_gates():
    out, gates = one_layer()
    gates.set_mask(torch.tensor([[True, False]]))
    assert gates.mask().tolist() == [[True, False]]
    assert out(X).tolist() == [[1, 2, 0, 0]]
    gates.set_mask(torch.tensor([[True, True]]))
    assert out(X).tolist() == X.tolist()
    assert not out._buffers
    assert not out._forward_pre_hooks


def test_open_gates_stay_without_a_mask_and_take_values():
    out, gates = one_layer()
    gates.switch_on()
    (leaf,) = gates.set(torch.tensor([[2.0, 0.5]]), gradient=True)
    out(X).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3, 7]  # what each unit says
    assert list(out.state_dict()) == ["weight", MASK]  # values of gates are in no checkpoint
    gates.switch_off()
    assert not out._buffers


def test_gates_of_each_sequence():
    out, gates = one_layer()
    gates.switch_on()
    gates.set(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert out(X.expand(2, 3, 4))[:, 0].tolist() == [[1, 2, 0, 0], [0, 0, 3, 4]]


def test_a_masked_unit_has_a_gradient_if_masks_are_opened():
    for open_masks, wanted in ((False, [3, 0]), (True, [3, 7])):
        out, gates = one_layer()
        gates.set_mask(torch.tensor([[True, False]]))
        gates.switch_on()
        with gates.differentiable(open_masks=open_masks) as (leaf,):
            found = out(X)
            assert found.tolist() == [[1, 2, 0, 0]]
            found.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == wanted
        assert gates.are_open  # as before
        assert out.get_buffer(MASK).tolist() == [1, 0]
        assert out.get_buffer(GATE).tolist() == [1, 1]
