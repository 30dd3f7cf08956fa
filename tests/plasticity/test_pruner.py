"""Killing, reviving and going back, with every check; strategies under which it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import Tensor

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import cross_entropy, token_nll
from lightning_app.models.matrices import roles_of
from lightning_app.plasticity.checks import SurgeryError
from lightning_app.plasticity.importance import Sample
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.pruner import Pruner, check_strategy
from lightning_app.plasticity.units import Units
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.groups import Groups
from lightning_app.training.muon import Muon
from lightning_app.training.optim import matrices_of, trained_parameters
from lightning_app.training.optimizer_parts import Entry, OptimizerByParts

each_way = pytest.mark.parametrize("surgery", ["remove", "mask"])
IDS = torch.randint(31, (3, 16), generator=torch.Generator().manual_seed(2))


def test_sharded_strategies_are_refused():
    deepspeed = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # made, it asks for the package
    sharded: list[Any] = [FSDPStrategy(), ModelParallelStrategy(), deepspeed]
    for strategy in sharded:
        with pytest.raises(InputError, match="no rank has whole matrices"):
            check_strategy(strategy)
    for strategy in (SingleDeviceStrategy(), DDPStrategy()):
        check_strategy(strategy)


def adamw(module: ArticleGPT) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2, fused=True)


def muon_and_adamw(module: ArticleGPT) -> torch.optim.Optimizer:
    roles = roles_of(module, module.backbone.blocks)
    groups = Groups(trained_parameters(module), matrices_of(module), roles)
    parts = [Entry(partial(Muon, lr=0.02), "matrices"), Entry(partial(torch.optim.AdamW, lr=1e-2, fused=True))]
    return OptimizerByParts(groups, parts)


def training(
    surgery: Any,
    *,
    keep: bool = True,
    extensions: Any = None,
    optimizer: Callable[[ArticleGPT], torch.optim.Optimizer] = adamw,
) -> tuple[ArticleGPT, Pruner]:
    """A module that has learned a step, with dropout, and its pruner."""
    torch.manual_seed(0)
    backbone = Decoder(vocab_size=31, block_size=16, embedding_dim=16, layers=2, heads=4, dropout=0.1)
    module = ArticleGPT(backbone, extensions=extensions)
    trainer: Any = SimpleNamespace(strategy=SingleDeviceStrategy(), optimizers=[optimizer(module)])
    pruner = Pruner(trainer, module, surgery=surgery, keep=keep, compute=lambda: module.backbone.text_logits(IDS))
    learn(module, pruner)
    return module, pruner


def learn(module: ArticleGPT, pruner: Pruner, steps: int = 2) -> None:
    for _ in range(steps):
        pruner._optimizer.zero_grad()
        cross_entropy(module(IDS)[:, :-1], IDS[:, 1:]).backward()
        pruner._optimizer.step()


def dead(units: Units, *which: tuple[int, int]) -> Tensor:
    found = torch.zeros(units.shape, dtype=torch.bool)
    for i, unit in which:
        found[i, unit] = True
    return found


def sample_of(module: ArticleGPT) -> Sample:
    return Sample([Batch.of(IDS)], lambda b: token_nll(module(b.input_ids), b.targets).mean(-1))


def state(module: ArticleGPT, pruner: Pruner) -> Any:
    optimizer = pruner._optimizer
    return copy.deepcopy((module.state_dict(), [optimizer.state.get(p) for p in module.parameters()]))


@each_way
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_killed_is_proved(surgery: Any, keep: bool):
    module, pruner = training(surgery, keep=keep)
    heads = units_in(module, "heads")[0]
    before = sum(p.numel() for p in module.parameters())
    checks = pruner.prune("heads", dead(heads, (0, 1), (1, 2), (1, 3)))
    assert checks["dead heads"] == 3
    assert checks["dead units whose weights change nothing"] == 3
    assert checks["parameters that the optimizer has"] == len(list(module.parameters()))
    gone = 3 * (16 * 12 + 12 + 16 * 4) if surgery == "remove" else 0
    assert checks["parameters removed"] == gone
    assert sum(p.numel() for p in module.parameters()) == before - gone
    assert ("logits, masked against removed" in checks) == (surgery == "remove")
    assert set(heads.kept) == ({(0, 1), (1, 2), (1, 3)} if keep else set())
    assert module.training
    again = pruner.prune("heads", dead(heads, (0, 3)))
    assert again["dead heads"] == 4
    learn(module, pruner)
    assert int((~heads.mask).sum()) == 4


@each_way
def test_a_whole_layer(surgery: Any):
    module, pruner = training(surgery)
    heads = units_in(module, "heads")[0]
    pruner.prune("heads", dead(heads, *((0, h) for h in range(4))))
    assert int((~heads.mask[0]).sum()) == 4
    regrown, _, _ = pruner.regrow("heads", 1, "undo", sample_of(module))
    assert heads.mask[0].sum() == 1
    assert regrown[0][0] == 0
    if surgery == "remove":
        assert heads.layers[0].present == [regrown[0][1]]
    learn(module, pruner)


@each_way
@pytest.mark.parametrize("how", ["undo", "new"])
def test_the_most_missed_are_revived(surgery: Any, how: Any):
    module, pruner = training(surgery)
    heads = units_in(module, "heads")[0]
    with torch.no_grad():  # head 1 of layer 0 says nothing, so nobody misses it
        heads.layers[0].in_out.parameter[:, 4:8] = 0.0
        for name in ("exp_avg", "exp_avg_sq"):  # nor does it learn to, while it is dead
            pruner._optimizer.state[heads.layers[0].in_out.parameter][name][:, 4:8] = 0.0
    kept = heads.slice_of(1, 2, pruner._optimizer), heads.slice_of(1, 3, pruner._optimizer)
    pruner.prune("heads", dead(heads, (0, 1), (1, 2), (1, 3)))
    learn(module, pruner)
    before, state_of_random = pruner.compute(), torch.get_rng_state()
    chosen, missed, checks = pruner.regrow("heads", 2, how, sample_of(module))
    assert torch.equal(torch.get_rng_state(), state_of_random)
    assert sorted(chosen) == [(1, 2), (1, 3)]
    assert missed == sorted(missed, reverse=True)
    assert missed[-1] > 0
    assert checks["dead heads"] == 1
    assert heads.mask.tolist() == [[True, False, True, True], [True] * 4]
    assert bool(heads.present[0, 1]) == (surgery == "mask")
    assert (0, 1) in heads.kept
    if how == "undo":
        for unit, then in zip((2, 3), kept, strict=True):
            for now, old in zip(heads.slice_of(1, unit, pruner._optimizer), then, strict=True):
                assert torch.equal(now.value, old.value)
                torch.testing.assert_close(now.state, old.state, rtol=0, atol=0)
    else:
        torch.testing.assert_close(pruner.compute(), before, atol=1e-5, rtol=0)
    learn(module, pruner)


@each_way
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_going_back_is_bit_for_bit(surgery: Any, kind: Any):
    module, pruner = training(surgery)
    units = units_in(module, kind)[0]
    pruner.prune(kind, dead(units, (0, 0)))
    learn(module, pruner)
    before, snapshot = state(module, pruner), pruner.snapshot([kind])
    logits, mask, kept = pruner.compute(), units.mask, set(units.kept)
    pruner.prune(kind, dead(units, (0, 2), (1, 1)))
    learn(module, pruner)
    if kind == "heads":
        pruner.regrow(kind, 1, "undo", sample_of(module))
        learn(module, pruner)
    pruner._optimizer.param_groups[0]["lr"] = 0.123
    pruner.go_back(snapshot)
    assert torch.equal(pruner.compute(), logits)
    assert torch.equal(units.mask, mask)
    assert set(units.kept) == kept
    torch.testing.assert_close(state(module, pruner), before, rtol=0, atol=0)
    assert pruner._optimizer.param_groups[0]["lr"] == 0.123
    assert pruner._optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    learn(module, pruner)


@each_way
def test_several_optimizers_follow_as_one(surgery: Any):
    """Surgery proves each time that it took what the optimizer knows along, and that what is regrown is as it was."""
    module, pruner = training(surgery, optimizer=muon_and_adamw)
    heads, neurons = (units_in(module, kind)[0] for kind in ("heads", "neurons"))
    pruner.prune("neurons", dead(neurons, (0, 0), (1, 3)))
    learn(module, pruner)
    before, snapshot = state(module, pruner), pruner.snapshot(["heads", "neurons"])
    pruner.prune("heads", dead(heads, (0, 1), (1, 2)))
    buffers = [s["momentum_buffer"] for s in pruner._optimizer.state.values() if "momentum_buffer" in s]
    c_attn = [
        p
        for group in pruner._optimizer.param_groups
        if group.get("layout", {}).get("shares") == [1, 1, 1]
        for p in group["params"]
    ]
    assert len(buffers) == 8
    assert [p.shape[0] for p in c_attn] == [36 if surgery == "remove" else 48] * 2
    assert all(pruner._optimizer.state[p]["momentum_buffer"].shape == p.shape for p in c_attn)
    learn(module, pruner)
    pruner.regrow("heads", 1, "undo", sample_of(module))
    learn(module, pruner)
    pruner.go_back(snapshot)
    torch.testing.assert_close(state(module, pruner), before, rtol=0, atol=0)
    learn(module, pruner)


@each_way
def test_copies_follow(surgery: Any):
    art = ARTRegularizer(novelty="drift")
    module, pruner = training(surgery, extensions=[art])
    main, copied = units_in(module, "heads")
    snapshot = pruner.snapshot(["heads"])
    pruner.prune("heads", dead(main, (0, 1), (1, 2), (1, 3)))
    assert torch.equal(copied.mask, main.mask)
    assert not copied.kept
    assert art.average is not None
    art.average.update_parameters(module.backbone)
    pruner.regrow("heads", 1, "undo", sample_of(module))
    assert torch.equal(copied.mask, main.mask)
    art.average.update_parameters(module.backbone)
    assert [p.shape for p in art.average.module.parameters()] == [p.shape for p in module.backbone.parameters()]
    pruner.go_back(snapshot)
    assert torch.equal(copied.mask, main.mask)
    assert copied.mask.all()


def test_parameters_that_go_beside_those_of_the_heads(monkeypatch: pytest.MonkeyPatch):
    module, pruner = training("remove")
    torch.nn.init.zeros_(module.backbone.transformer["h"][0].ln_1.bias)
    remove = Units.remove

    def more(units: Units, *args: Any, **options: Any) -> None:
        remove(units, *args, **options)
        module.backbone.transformer["h"][0].ln_1.bias = None

    monkeypatch.setattr(Units, "remove", more)
    with pytest.raises(SurgeryError, match="parameters went, 268 belong to the units"):
        pruner.prune("heads", dead(units_in(module, "heads")[0], (0, 1)))
