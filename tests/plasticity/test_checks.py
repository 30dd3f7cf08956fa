"""Each proof lets honest surgery pass, and refuses each way to fake it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_app.models.backbone import Backbone
from lightning_app.models.losses import cross_entropy
from lightning_app.plasticity import checks as proof
from lightning_app.plasticity import gates as gates_module
from lightning_app.plasticity.checks import SurgeryError
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.layout import Part
from lightning_app.plasticity.units import Units

Build = Callable[[str], Backbone]


@pytest.fixture
def model(build: Build) -> Backbone:
    return build("gpt2")


@pytest.fixture
def units(model: Backbone) -> Units:
    return units_of(model, "heads")


@pytest.fixture
def optimizer(model: Backbone, ids: Tensor) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    cross_entropy(model(ids), ids).backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def dead(units: Units) -> Tensor:
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[0, 1] = dead[1, 0] = dead[1, 2] = True
    return dead


def test_dead_units_are_tried_and_left_as_they_were(model: Backbone, units: Units, ids: Tensor, dead: Tensor):
    units.set_mask(~dead)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert proof.check_dead_units(units, lambda: model(ids)) == 3
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    units.remove(dead)
    assert proof.check_dead_units(units, lambda: model(ids)) == 0


def test_one_forward_tries_the_dead_units_of_all_layers(model: Backbone, units: Units, ids: Tensor, dead: Tensor):
    units.set_mask(~dead)
    forwards: list[Tensor] = []

    def compute() -> Tensor:
        forwards.append(model(ids))
        return forwards[-1]

    assert dead.any(1).sum() == 2
    assert proof.check_dead_units(units, compute) == 3
    assert len(forwards) == 2


def test_the_layer_whose_mask_is_not_read_is_named(model: Backbone, units: Units, ids: Tensor, dead: Tensor):
    units.set_mask(~dead)
    units.layers[1].out._forward_pre_hooks.clear()
    with pytest.raises(SurgeryError, match=r"^heads \[0, 2\] of layer 1 are dead, and yet .* the mask is not read"):
        proof.check_dead_units(units, lambda: model(ids))


def test_a_mask_that_is_not_read(
    model: Backbone, units: Units, ids: Tensor, dead: Tensor, monkeypatch: pytest.MonkeyPatch
):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    monkeypatch.setattr(gates_module, "multiply_by_gates", lambda _module, arguments: arguments)
    units.set_mask(~dead)
    with pytest.raises(SurgeryError, match=r"heads \[1\] of layer 0 are dead, and yet .* the mask is not read"):
        proof.check_dead_units(units, lambda: model(ids))
    after = {name: x for name, x in model.state_dict().items() if name in before}
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_logits():
    logits = torch.randn(2, 5)
    assert proof.logits_agree(logits, logits + 1e-6, what="removal") == pytest.approx(1e-6, rel=0.2)
    with pytest.raises(SurgeryError, match=r"removal: the logits differ by 0.001"):
        proof.logits_agree(logits, logits + 1e-3, what="removal")
    with pytest.raises(SurgeryError, match="nan"):
        proof.logits_agree(logits, logits * torch.nan, what="removal")
    proof.logits_agree(logits.bfloat16(), (logits + 1e-3).bfloat16(), what="removal")


def test_counts(units: Units, dead: Tensor):
    units.remove(dead)
    assert proof.counts_agree(units, ~dead) == 3
    dead[1, 1] = True
    with pytest.raises(SurgeryError, match=r"4 heads should be dead, 3 are.*\[\[1, 1\]\]"):
        proof.counts_agree(units, ~dead)


def test_the_optimizer(model: Backbone, units: Units, optimizer: torch.optim.Optimizer, dead: Tensor):
    n = len(list(model.parameters()))
    assert proof.optimizer_knows(model, optimizer) == n
    units.remove(dead, optimizer)
    assert proof.optimizer_knows(model, optimizer) == n
    units.regrow(1, 2, "undo")  # behind the optimizer's back
    with pytest.raises(SurgeryError, match=r"it lacks .*it would go on updating what is no longer part"):
        proof.optimizer_knows(model, optimizer)


def test_state_of_a_parameter_that_is_gone(model: Backbone, optimizer: torch.optim.Optimizer):
    optimizer.state[torch.nn.Parameter(torch.zeros(2))] = {"exp_avg": torch.zeros(2)}
    with pytest.raises(SurgeryError, match="state of 1 parameters that are no longer part"):
        proof.optimizer_knows(model, optimizer)


def surgery(
    units: Units, optimizer: torch.optim.Optimizer, dead: Tensor, sabotage: Callable[[], object] = lambda: None
) -> None:
    with proof.removal_checked(units, optimizer):
        units.remove(dead, optimizer)
        sabotage()


def test_what_stays_and_what_goes_is_compared(units: Units, optimizer: torch.optim.Optimizer, dead: Tensor):
    surgery(units, optimizer, dead)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_weight_that_changed(units: Units, optimizer: torch.optim.Optimizer, dead: Tensor, name: str):
    part = next(part for part in units.layers[0].parts if part.name == name)
    with pytest.raises(SurgeryError, match=f"that stay in layer 0 have other numbers in {name}"):
        surgery(units, optimizer, dead, lambda: part.parameter.data[..., 0].add_(1e-6))


def test_a_moment_that_changed(units: Units, optimizer: torch.optim.Optimizer, dead: Tensor):
    part = units.layers[1].in_out
    with pytest.raises(SurgeryError, match="that stay in layer 1 have other numbers in exp_avg_sq"):
        surgery(units, optimizer, dead, lambda: optimizer.state[part.parameter]["exp_avg_sq"][-1].mul_(2))


def test_moments_that_are_missing(units: Units, optimizer: torch.optim.Optimizer, dead: Tensor):
    part = units.layers[0].parts[0]
    with pytest.raises(SurgeryError, match=r"layer 0: the optimizer's state was .*exp_avg_sq.* now it is \[''\]"):
        surgery(units, optimizer, dead, lambda: optimizer.state.pop(part.parameter))


def test_what_is_kept_of_those_that_go_is_what_they_were(units: Units, optimizer: torch.optim.Optimizer, dead: Tensor):
    with pytest.raises(SurgeryError, match="head 1 of layer 0 was not kept as it was"):
        surgery(units, optimizer, dead, lambda: units.kept[0, 1][0].value[0].add_(1e-6))
    units.regrow(1, 0, "undo", optimizer)
    dead[0, 1] = False
    with pytest.raises(SurgeryError, match="head 0 of layer 1 was not kept as it was: exp_avg differs"):
        surgery(units, optimizer, dead, lambda: units.kept[1, 0][0].state["exp_avg"].add_(1e-6))


def test_the_wrong_head(
    model: Backbone,
    units: Units,
    ids: Tensor,
    optimizer: torch.optim.Optimizer,
    dead: Tensor,
    monkeypatch: pytest.MonkeyPatch,
):
    units.set_mask(~dead)
    masked, honest = model(ids).detach(), Part.positions
    with monkeypatch.context() as patch:
        patch.setattr(Part, "positions", lambda part, present: honest(part, present).roll(1, 0))
        units.remove(dead)
    with pytest.raises(SurgeryError, match="removal: the logits differ"):
        proof.logits_agree(masked, model(ids).detach(), what="removal")


def test_regrown_as_it_was(units: Units, optimizer: torch.optim.Optimizer, dead: Tensor):
    units.remove(dead, optimizer)
    kept = units.kept[0, 1]
    units.regrow(0, 1, "undo", optimizer)
    proof.as_kept(units, 0, 1, kept, optimizer)
    with pytest.raises(SurgeryError, match="head 1 of layer 0 did not come back as it was"):
        proof.as_kept(units, 0, 1, kept, None)  # without its moments
    kept[0].value[0] += 1e-6
    with pytest.raises(SurgeryError, match="did not come back"):
        proof.as_kept(units, 0, 1, kept, optimizer)
