"""Rates of layers by parameter group, through schedules and resumes; rates of heads by update."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import cross_entropy
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.learning_rates import (
    FinetuningRates,
    HeadRates,
    described,
    head_factors,
    set_layer_factors,
)
from lightning_app.plasticity.report.events import GroupRate
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.optim import matrices_of, parameter_groups, trained_parameters
from lightning_app.training.schedulers import WarmupCosine


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"vocab_size": 31, "block_size": 16, "embedding_dim": 16, "layers": 2, "heads": 4, **options})


def groups_of(module: ArticleGPT) -> list[dict[str, Any]]:
    return parameter_groups(trained_parameters(module), matrices_of(module), by_layer=True)


def trainer_of(optimizer: torch.optim.Optimizer, scheduler: Any = None) -> Any:
    configs = [SimpleNamespace(scheduler=scheduler)] if scheduler is not None else []
    return SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=configs)


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    ids = torch.randint(31, (2, 16), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    cross_entropy(model(ids)[:, :-1], ids[:, 1:]).backward()
    optimizer.step()


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Layers


def test_every_parameter_is_in_the_group_of_its_block_once():
    module = ArticleGPT(decoder())
    groups = groups_of(module)
    names = {id(p): name for name, p in module.named_parameters()}
    assert sorted(names) == sorted(id(p) for group in groups for p in group["params"])
    for group in groups:
        for p in group["params"]:
            block = [int(part) for part in names[id(p)].split(".") if part.isdecimal()]
            assert group["layer"] == (block[0] if block else -1)
            assert ("weight_decay" in group) == (p.dim() < 2)
    assert len(parameter_groups(trained_parameters(module), matrices_of(module), by_layer=False)) == 2


def test_a_factor_changes_the_update_of_its_layer_alone_and_goes_back():
    results = []
    for factor in (1.0, 3.0):
        module = ArticleGPT(decoder())
        optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
        trainer = trainer_of(optimizer)
        before = weights(module)
        set_layer_factors(trainer, {1: factor})
        learn(module, optimizer)
        results.append({name: p - before[name] for name, p in weights(module).items()})
        assert {g["layer"]: g["factor"] for g in zip_groups(optimizer, trainer)} == {0: 1.0, 1: factor, -1: 1.0}
        set_layer_factors(trainer, {})
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1] * len(optimizer.param_groups))
    for name, update in results[0].items():
        factor = 3.0 if ".h.1." in name else 1.0
        torch.testing.assert_close(results[1][name], factor * update, rtol=1e-4, atol=1e-6)
        assert update.any()


def zip_groups(optimizer: torch.optim.Optimizer, trainer: Any) -> list[dict[str, Any]]:
    return [
        {**said.content(), "layer": g["layer"]}
        for g, said in zip(optimizer.param_groups, described(trainer), strict=True)
    ]


@pytest.mark.parametrize("kind", ["ours", "torch", "plateau"])
def test_schedules_go_on_from_there(kind: str):
    def made() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW(groups_of(ArticleGPT(decoder())), lr=0.1)
        if kind == "plateau":
            return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        ours = WarmupCosine(optimizer, warmup_steps=2, total_steps=12)
        return optimizer, ours if kind == "ours" else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    def step(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        optimizer.step()
        scheduler.step(1.0) if kind == "plateau" else scheduler.step()

    plain, changed = made(), made()
    for number in range(10):
        if number == 3:
            set_layer_factors(trainer_of(*changed), {0: 4.0})
        if number == 7:
            set_layer_factors(trainer_of(*changed), {})
        for pair in (plain, changed):
            step(*pair)
        for one, two in zip(plain[0].param_groups, changed[0].param_groups, strict=True):
            factor = 4.0 if one["layer"] == 0 and 3 <= number < 7 else 1.0
            assert two["lr"] == pytest.approx(factor * one["lr"]), number


def test_factors_survive_a_state_dict():
    optimizer = torch.optim.AdamW(groups_of(ArticleGPT(decoder())), lr=0.1)
    scheduler = WarmupCosine(optimizer, warmup_steps=0, total_steps=12)
    set_layer_factors(trainer_of(optimizer, scheduler), {0: 4.0})
    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    again = torch.optim.AdamW(groups_of(ArticleGPT(decoder())), lr=0.1)
    other = WarmupCosine(again, warmup_steps=0, total_steps=12)
    other.load_state_dict(state[1])
    again.load_state_dict(state[0])
    for pair in ((optimizer, scheduler), (again, other)):
        pair[0].step()
        pair[1].step()
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    set_layer_factors(trainer_of(again, other), {})
    assert len({round(g["lr"], 12) for g in again.param_groups}) == 1


def test_an_optimizer_without_layers_is_described_too():
    module = ArticleGPT(decoder())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    assert described(trainer_of(optimizer)) == [GroupRate(name="all", lr=0.1, factor=1.0)]
    optimizer.param_groups[0]["part"] = "matrices"  # of several optimizers
    assert described(trainer_of(optimizer))[0].name == "all, matrices"


# Heads


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_updates_of_a_head_are_scaled_by_hand(make: Any, removed: bool):
    """p + factor (step(p) - p), for exactly the rows and columns of that head; the optimizer's state is untouched."""
    plain, scaled = decoder(), decoder()
    optimizers = [make(model.parameters(), lr=0.01) for model in (plain, scaled)]
    for model, optimizer in zip((plain, scaled), optimizers, strict=True):
        learn(model, optimizer)
        if removed:
            dead = torch.zeros(2, 4, dtype=torch.bool)
            dead[0, 0] = True
            units_of(model, "heads").remove(dead, optimizer)
    factors = torch.ones(2, 4)
    factors[0, 2], factors[1, 1] = 3.0, 0.0
    rates = HeadRates(units_of(scaled, "heads"), factors)
    rates.attach(optimizers[1])
    before = weights(scaled)
    for model, optimizer in zip((plain, scaled), optimizers, strict=True):
        learn(model, optimizer, seed=1)
    expected = weights(plain)
    for i, unit in ((0, 2), (1, 1)):
        at = unit - (removed and i == 0)
        n = 3 if removed and i == 0 else 4
        rows = torch.cat([torch.arange(4) + 4 * at + 4 * n * j for j in range(3)])
        for name, index in (
            ("c_attn.weight", rows),
            ("c_attn.bias", rows),
            ("c_proj.weight", torch.arange(4) + 4 * at),
        ):
            name = f"transformer.h.{i}.attn.{name}"
            where = (slice(None), index) if name.endswith("c_proj.weight") else (index,)
            old = before[name][where]
            expected[name][where] = old + factors[i, unit] * (expected[name][where] - old)
    torch.testing.assert_close(weights(scaled), expected, rtol=0, atol=1e-7)
    for one, two in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(optimizers[0].state[one], optimizers[1].state[two], rtol=0, atol=0)
    rates.detach()
    twin = decoder()
    if removed:
        units_of(twin, "heads").remove(dead)
    twin.load_state_dict(scaled.state_dict())
    other = make(twin.parameters(), lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for model, optimizer in ((twin, other), (scaled, optimizers[1])):
        learn(model, optimizer, seed=2)
    torch.testing.assert_close(weights(scaled), weights(twin), rtol=0, atol=0)


def test_factors_of_one_change_nothing():
    plain, scaled = decoder(), decoder()
    for model in (plain, scaled):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        rates = HeadRates(units_of(model, "heads"), torch.ones(2, 4))
        if model is scaled:
            rates.attach(optimizer)
        learn(model, optimizer)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=0, atol=0)


# Of a cycle's fine-tuning


def test_updates_grow_as_far_as_a_layer_lost_heads():
    alive = torch.tensor([[True, True], [True, False], [False, False]])
    assert head_factors(alive, 3.0).tolist() == [[1, 1], [2, 2], [3, 3]]


def factors_of_blocks(trainer: Any) -> list[float]:
    return [float(group.factor or 0) for group in described(trainer) if str(group.name).startswith("block")]


def test_rates_last_until_the_end_of_the_fine_tuning():
    module = ArticleGPT(decoder())
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    trainer, heads = trainer_of(optimizer), units_of(module.backbone, "heads")
    neurons = torch.ones(2, 64, dtype=torch.bool)
    neurons[1, 0] = False
    rates = FinetuningRates(layer_factor=3.0, head_factor=1.0)
    assert rates.begin(trainer, heads, [heads.mask, neurons]) is None
    assert factors_of_blocks(trainer) == [1, 1, 3, 3]
    rates.end(trainer)
    assert factors_of_blocks(trainer) == [1, 1, 1, 1]

    heads.set_mask(torch.tensor([[True, True, True, False], [True] * 4]))
    rates = FinetuningRates(layer_factor=1.0, head_factor=5.0)
    factors = rates.begin(trainer, heads, [heads.mask])
    assert factors is not None
    assert factors[:, 0].tolist() == [2, 1]
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    rates.end(trainer)
    assert len(optimizer._optimizer_step_pre_hooks) == 0
