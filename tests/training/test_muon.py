"""Muon against torch's, matrix by matrix, however a model keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from lightning_app.errors import InputError
from lightning_app.models.matrices import Layout, Role
from lightning_app.training.groups import Groups
from lightning_app.training.muon import Muon, orthogonalised

COEFFICIENTS = (3.4445, -4.775, 2.0315)
OPTIONS: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}


def groups(weight: nn.Parameter, layout: Layout, *, sharded: bool = False) -> Groups:
    return Groups(
        [("c_attn.weight", weight)], {"c_attn.weight"}, {"c_attn.weight": Role("matrices", layout)}, sharded=sharded
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(optimizer: torch.optim.Optimizer, steps: list[list[Tensor]]) -> list[Tensor]:
    """The weights after steps with these gradients, one for each parameter."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for gradients in steps:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_the_iteration_is_torchs_and_takes_the_singular_values_to_one(shape: tuple[int, int]):
    matrix = drawn(*shape).float()
    found = orthogonalised(matrix, COEFFICIENTS, steps=5, eps=1e-7)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    theirs = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, 1e-7).float()  # in bf16
    assert torch.allclose(found, theirs, atol=0.04)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ found @ right.T
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-5)  # the same singular vectors


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", [(24, 6), (6, 24), (6, 12)])
def test_a_long_matrix_gets_what_each_step_on_the_whole_of_it_gives(shape: tuple[int, int], steps: int):
    matrix = drawn(*shape) @ torch.diag(torch.logspace(0, -4, shape[1], dtype=torch.float64))
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert torch.allclose(orthogonalised(matrix, COEFFICIENTS, steps=steps, eps=1e-7), x, atol=1e-12)
    single = orthogonalised(matrix.float(), COEFFICIENTS, steps=steps, eps=1e-7)
    assert float((single.double() - x).norm() / x.norm()) < 1e-4


@pytest.mark.parametrize("more", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}], ids=str)
@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_a_plain_matrix_learns_as_by_torchs(shape: tuple[int, int], more: dict[str, Any]):
    steps = [[drawn(*shape, seed=i).float()] for i in range(1, 5)]
    both = []
    for cls in (Muon, torch.optim.Muon):
        weight = nn.Parameter(drawn(*shape).float())
        optimizer = cls([weight], **OPTIONS, **more)
        both.append((trained(optimizer, steps)[0], optimizer.state[weight]["momentum_buffer"]))
    (own, own_buffer), (theirs, their_buffer) = both
    assert torch.equal(own_buffer, their_buffer)
    moved = (theirs - drawn(*shape).float()).abs().max()
    assert float((own - theirs).abs().max()) < 0.05 * float(moved)  # bf16 against float32


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("shares", "each", "rows"),
    [
        ((1, 1, 1), None, [[*range(4)], [*range(4, 8)], [*range(8, 12)]]),
        ((4, 1, 1), None, [[*range(8)], [8, 9], [10, 11]]),
        ((1, 1, 1), 2, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
    ],
    ids=["fused", "grouped", "head by head"],
)
def test_fused_matrices_learn_as_matrices_of_their_own(
    shares: tuple[int, ...], each: int | None, rows: list[list[int]], transposed: bool
):
    start, steps = drawn(12, 5), [drawn(12, 5, seed=i) * torch.linspace(1, 50, 12)[:, None] for i in range(1, 4)]
    turned = (lambda x: x.T.contiguous()) if transposed else (lambda x: x)
    fused = nn.Parameter(turned(start).clone())
    optimizer = Muon(groups(fused, Layout(transposed, shares, each)), **OPTIONS)
    (found,) = trained(optimizer, [[turned(step)] for step in steps])
    assert optimizer.state[fused]["momentum_buffer"].shape == fused.shape
    apart = Muon([nn.Parameter(start[index]) for index in rows], **OPTIONS)
    wanted = trained(apart, [[step[index] for index in rows] for step in steps])
    for index, weight in zip(rows, wanted, strict=True):
        assert torch.allclose(turned(found)[index], weight, atol=1e-6)
    whole = trained(Muon([nn.Parameter(start.clone())], **OPTIONS), [[step] for step in steps])[0]
    assert not torch.allclose(turned(found), whole, atol=1e-2)  # the largest would set the size of all


def test_groups_are_divided_by_layout_and_the_state_is_plain():
    weights = [nn.Parameter(drawn(6, 4)) for _ in range(4)]
    layouts = [Layout(), Layout(shares=(1, 1, 1)), Layout(), Layout(True)]
    named = [(str(i), weight) for i, weight in enumerate(weights)]
    roles = {str(i): Role("matrices", layout) for i, layout in enumerate(layouts)}
    optimizer = Muon(Groups(named, {*roles}, roles), **OPTIONS)
    numbers = [[int(next(n for n, w in named if w is p)) for p in group["params"]] for group in optimizer.param_groups]
    assert numbers == [[0, 2], [1], [3]]
    assert optimizer.state_dict()["param_groups"][1]["layout"] == {
        "transposed": False,
        "shares": [1, 1, 1],
        "each": None,
    }


def test_what_is_no_matrix_and_what_no_process_has_whole_is_refused():
    named = [(f"h.{i}.bias", nn.Parameter(drawn(3))) for i in range(5)] + [("w", nn.Parameter(drawn(3, 3)))]
    with pytest.raises(
        InputError, match=r"not h\.0\.bias, h\.1\.bias, h\.2\.bias and 2 more: give it `match: matrices`"
    ):
        Muon(Groups(named, {"w"}, {}), **OPTIONS)
    with pytest.raises(InputError, match="Muon needs whole matrices, and the strategy gives each process shards"):
        Muon(groups(nn.Parameter(drawn(3, 3)), Layout(), sharded=True), **OPTIONS)


def test_a_parameter_without_a_gradient_stays_and_a_closure_is_called_once():
    weights = [nn.Parameter(drawn(3, 3)) for _ in range(2)]
    optimizer, calls = Muon(weights, **OPTIONS), []

    def closure() -> Tensor:
        calls.append(1)
        loss = weights[0].square().sum()
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) == pytest.approx(float(drawn(3, 3).square().sum()))
    assert len(calls) == 1
    assert torch.equal(weights[1], drawn(3, 3))
    assert not torch.equal(weights[0], drawn(3, 3))
    assert [*optimizer.state] == [weights[0]]
