"""Weight decay and momentum by step: the look-up, the groups, and a fit that is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_app.errors import InputError
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.optimizers import change_group, group_options
from lightning_app.training.schedules import Ramp, Schedules
from tests.sameness import checkpoint, differences


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.8), (1, 0.85), (4, 1.0), (8, 0.75), (12, 0.5), (13, 0.5), (1000, 0.5)]
)
def test_a_line_then_half_a_cosine(step: int, factor: float):
    ramp = Ramp(warmup_steps=4, start_ratio=0.8, end_ratio=0.5)
    assert ramp.factor(step, 12) == pytest.approx(factor, abs=1e-15)


def test_its_own_length_counts_and_the_edges_divide_by_nothing():
    assert [Ramp(end_ratio=0.0, total_steps=4).factor(step, 100) for step in (0, 4, 9)] == [1.0, 0.0, 0.0]
    assert [Ramp(warmup_steps=5).factor(step, 3) for step in (0, 2, 5, 9)] == [0.0, 0.4, 1.0, 1.0]
    assert [Ramp(warmup_steps=2, end_ratio=3.0).factor(step, 2) for step in (1, 2)] == [0.5, 3.0]


def adamw(**options: Any) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.9), weight_decay=0.2, **options)


def test_the_groups_get_the_numbers_of_a_step_and_keep_what_they_start_from():
    optimizer, half = adamw(), Ramp(end_ratio=0.5)
    Schedules(weight_decay=half, betas=half).put(optimizer, 10, 10)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.4, 0.9)] * 2
    assert Schedules(weight_decay=half, betas=half).shown(optimizer) == {"weight_decay": 0.1, "betas": 0.4}
    kept = group_options(optimizer)[0]
    assert (kept["weight_decay"], kept["betas"]) == (0.2, [0.8, 0.9])
    change_group(optimizer.param_groups[0], "weight_decay", 0.6, before=0.2)
    Schedules(weight_decay=half).put(optimizer, 10, 10)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)  # its schedule is gone


def test_without_any_nothing_is_touched():
    optimizer, other = adamw(), adamw()
    Schedules().put(optimizer, 3, 10)
    assert optimizer.state_dict() == other.state_dict()
    assert Schedules().shown(optimizer) == {}


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(InputError, match=r"schedules: end_ratio is -1; it must be at least 0"):
        Ramp(end_ratio=-1)
    with pytest.raises(InputError, match=r"has momentum, which the optimizer has not; it has weight_decay, betas"):
        Schedules(momentum=Ramp()).check(adamw())
    with pytest.raises(InputError, match=r"schedules\.betas reaches 1\.6; it must stay below 1"):
        Schedules(betas=Ramp(end_ratio=2.0)).check(adamw())
    Schedules(weight_decay=Ramp(end_ratio=20.0)).check(adamw())


@pytest.mark.slow
def test_a_fit_follows_them_and_a_resume_is_the_run_that_went_on(
    folder: Path, config: Callable[..., str], main: Callable[..., None]
):
    by_parts = [
        {"match": "matrices", "class_path": "torch.optim.Muon", "init_args": {"lr": 0.02, "momentum": 0.9}},
        {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.8, 0.9], "fused": True}},
    ]
    schedules = {
        "weight_decay": {"end_ratio": 0.0, "total_steps": 6},
        "momentum": {"warmup_steps": 3, "start_ratio": 0.5},
        "betas": {"end_ratio": 0.5, "total_steps": 6},
    }
    words = ["fit", "--config", config({"model": {"init_args": {"optimizer": by_parts, "schedules": schedules}}})]
    main(*words, "--runs_dir", "whole")
    main(*words, "--trainer.max_steps", 4, "--model.scheduler.total_steps", 6)
    main(*words, "--ckpt_path", "last")
    resumed, whole = (checkpoint(Path(runs) / "tiny/version_0/checkpoints/last.ckpt") for runs in ("runs", "whole"))
    assert len(whole) > 100
    assert not differences(resumed, whole)
    found = [record for record in read_log(Path("whole/tiny/version_0")) if "momentum" in record]
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert [record["momentum"] for record in found] == pytest.approx([0.45, 0.6, 0.75, 0.9, 0.9, 0.9])
    assert found[3]["weight_decay"] == pytest.approx(0.05)
    assert found[3]["betas"] == pytest.approx(0.6)
