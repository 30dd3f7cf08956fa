from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.training.optim import (
    Optimisation,
    clip,
    gradient_norm,
    grouped_by_layer,
    layer_of_parameter,
    matrices_of,
    optimizer_steps,
    parameter_groups,
    trained_parameters,
)
from lightning_app.training.schedulers import WarmupCosine


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=1.0)


def one_weight() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(1))]}]


@pytest.mark.parametrize(
    ("steps", "warmup", "length"), [(50, 10, 50), (10, 10, 10)], ids=["warm-up within", "warm-up alone"]
)
def test_a_schedule_gets_the_length_of_the_run(steps: int, warmup: int, length: int):
    made = Optimisation(sgd, lambda o: WarmupCosine(o, warmup_steps=warmup)).configured(
        one_weight(), steps=lambda: steps
    )
    scheduler = made["lr_scheduler"]["scheduler"]
    assert scheduler.total_steps == length
    assert scheduler.optimizer is made["optimizer"]
    assert made["lr_scheduler"]["interval"] == "step"


def test_a_run_shorter_than_its_warm_up_is_told():
    how = Optimisation(sgd, lambda o: WarmupCosine(o, warmup_steps=9))
    with pytest.warns(UserWarning, match="the run has 5 steps, so it ends within the 9 of its warm-up"):
        assert how.configured(one_weight(), steps=lambda: 5)["lr_scheduler"]["scheduler"].total_steps == 9


def never() -> int:
    raise AssertionError("the length is not needed")


def test_the_length_is_asked_for_where_it_is_needed_alone():
    assert isinstance(Optimisation(sgd, None).configured(one_weight(), steps=never), torch.optim.SGD)
    own = Optimisation(sgd, lambda o: WarmupCosine(o, warmup_steps=1, total_steps=7))
    assert own.configured(one_weight(), steps=never)["lr_scheduler"]["scheduler"].total_steps == 7


def test_a_model_that_is_frozen_whole_is_refused_in_words():
    with pytest.raises(InputError, match="nothing to train: all weights are frozen"):
        Optimisation(sgd, None).configured([], steps=lambda: 10)


def test_copies_share_it():
    how = Optimisation(sgd, None)
    assert copy.deepcopy([how])[0] is how


class Blocks(nn.Module):
    """Two blocks of a matrix and a bias, one norm outside, a frozen matrix, and what FSDP wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "norm": nn.LayerNorm(2)})
        self._fsdp_wrapped_module = nn.Linear(2, 1, bias=False)
        self.frozen = nn.Linear(2, 2, bias=False).requires_grad_(False)


def names_in(module: nn.Module, groups: list[dict[str, Any]]) -> list[list[str]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def test_groups_of_trained_parameters():
    module = Blocks()
    trained = trained_parameters(module)
    assert {"weight", "backbone.h.0.weight"} <= dict(trained).keys()  # without the wrapper's name
    assert "frozen.weight" not in dict(trained)
    matrices = {name.replace("_fsdp_wrapped_module.", "") for name in matrices_of(module)}
    two = parameter_groups(trained, matrices, by_layer=False)
    assert [group.get("weight_decay") for group in two] == [None, 0.0]
    weights = ["backbone.h.0.weight", "backbone.h.1.weight", "_fsdp_wrapped_module.weight"]
    others = ["backbone.h.0.bias", "backbone.h.1.bias", "backbone.norm.weight", "backbone.norm.bias"]
    assert names_in(module, two) == [weights, others]
    by_layer = parameter_groups(trained, matrices, by_layer=True)
    assert [(group["layer"], group.get("weight_decay")) for group in by_layer] == [
        *((0, None), (0, 0.0), (1, None), (1, 0.0), (-1, None), (-1, 0.0))
    ]
    assert names_in(module, by_layer)[2:4] == [["backbone.h.1.weight"], ["backbone.h.1.bias"]]


@pytest.mark.parametrize(
    ("name", "layer"),
    [("backbone.transformer.h.3.attn.c_attn.weight", 3), ("backbone.wte.weight", -1), ("regularizers.0.scale", -1)],
)
def test_the_layer_in_a_name(name: str, layer: int):
    assert layer_of_parameter(name) == layer


def test_a_resume_has_the_groups_that_its_checkpoint_had():
    plain, layered = ({"optimizer_states": [{"param_groups": [group]}]} for group in ({"lr": 1}, {"lr": 1, "layer": 0}))
    assert [grouped_by_layer(found, wanted=False) for found in ({}, plain, layered)] == [False, False, True]
    assert [grouped_by_layer(found, wanted=True) for found in ({}, layered)] == [True, True]
    with pytest.raises(InputError, match="set layer_lr_factor: 1, or take the weights alone"):
        grouped_by_layer(plain, wanted=True)


def trainer(**options: Any) -> Any:
    defaults = {"max_steps": -1, "max_epochs": None, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
    return SimpleNamespace(**{**defaults, "callbacks": [], "strategy": None, **options})


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 2}, 20),
        ({"max_steps": 7, "max_epochs": 2}, 7),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 8),
        ({"max_epochs": 2, "limit_train_batches": 4}, 8),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 10),
        ({"max_steps": 0, "max_epochs": 1, "limit_train_batches": 0}, 1),
    ],
)
def test_how_many_steps_a_run_does(options: dict[str, Any], steps: int):
    assert optimizer_steps(trainer(**options), lambda: 10) == steps


def test_where_nobody_knows_the_batches_the_trainer_counts_them():
    assert optimizer_steps(trainer(max_epochs=3, estimated_stepping_batches=21), None) == 21
    with pytest.raises(InputError, match=r"give trainer\.max_steps or trainer\.max_epochs"):
        optimizer_steps(trainer(max_epochs=-1), lambda: 10)


class Clipped(nn.Module):
    """Two numbers whose gradient has the norm 5."""

    def __init__(self, step: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.weight.grad = torch.tensor([3.0, 4.0])
        self.trainer = trainer(global_step=step, log_every_n_steps=10)
        self.by_value: list[tuple[float | None, str | None]] = []

    def clip_gradients(self, optimizer: object, value: float | None, algorithm: str | None) -> None:
        self.by_value.append((value, algorithm))


def clipped(module: Any, value: float | None, algorithm: str | None = None) -> Tensor | None:
    return clip(module, sgd([module.weight]), value, algorithm)


def test_the_norm_is_that_before_clipping():
    module = Clipped()
    assert clipped(module, 1.0) == 5.0
    assert gradient_norm(module) == pytest.approx(1.0)


def test_by_value_no_norm_is_found():
    module = Clipped()
    assert clipped(module, 0.5, "value") is None
    assert module.by_value == [(0.5, "value")]


@pytest.mark.parametrize(("step", "norm"), [(8, None), (9, 5.0), (19, 5.0)])
def test_without_clipping_the_norm_of_a_step_that_is_logged(step: int, norm: float | None):
    module = Clipped(step)
    assert clipped(module, None) == norm
    assert math.isclose(float(gradient_norm(module)), 5.0)
