import io

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau

from lightning_app.errors import InputError
from lightning_app.training.schedulers import (
    WarmupCosine,
    linear_warmup,
    scheduler_config,
    step_on_plateau,
    warmup_cosine,
)


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (2.0, 3.0)]
    return torch.optim.SGD(groups)


def advance(scheduler: WarmupCosine, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr())
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def expected(start: int, steps: int, total_steps: int | None) -> list[list[float]]:
    shape = {"warmup_steps": 3, "total_steps": total_steps, "min_ratio": 0.2}
    return [[lr * warmup_cosine(step, **shape) for lr in (2.0, 3.0)] for step in range(start, start + steps)]


def test_scales_every_group():
    scheduler = WarmupCosine(optimizer(), warmup_steps=3, min_ratio=0.2, total_steps=8)
    assert advance(scheduler, 10) == expected(0, 10, 8)


def test_the_length_may_come_later():
    scheduler = WarmupCosine(optimizer(), warmup_steps=3, min_ratio=0.2)
    scheduler.set_total_steps(8)
    assert advance(scheduler, 10) == expected(0, 10, 8)
    assert advance(WarmupCosine(optimizer(), warmup_steps=3, min_ratio=0.2), 10) == expected(0, 10, None)


@pytest.mark.parametrize("total_steps", [8, 12])
def test_resume_is_exact_and_takes_the_shape_from_the_configuration(total_steps):
    first = WarmupCosine(optimizer(), warmup_steps=3, min_ratio=0.2, total_steps=8)
    advance(first, 5)
    file = io.BytesIO()
    torch.save({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = WarmupCosine(optimizer(), warmup_steps=3, min_ratio=0.2, total_steps=total_steps)
    second.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["scheduler"])
    assert advance(second, 5)[0] == first.get_last_lr()
    assert advance(second, 3) == expected(10, 3, total_steps)


def test_refuses():
    with pytest.raises(InputError, match=r"warmup_steps is 100 but training ends after 20 steps"):
        WarmupCosine(optimizer(), total_steps=20)
    with pytest.raises(InputError, match="warmup_steps is 100 but training ends after 99"):
        WarmupCosine(optimizer()).set_total_steps(99)
    with pytest.raises(InputError, match=r"min_ratio 1\.5"):
        WarmupCosine(optimizer(), min_ratio=1.5)


def test_a_scheduler_that_needs_a_metric_names_one_of_a_validation():
    own = optimizer()
    plateau = ReduceLROnPlateau(own, monitor="val/acc", mode="max", patience=0, factor=0.1)
    assert scheduler_config(plateau)["monitor"] == "val/acc"
    for accuracy in (0.1, 0.2, 0.2):
        step_on_plateau([plateau, WarmupCosine(optimizer())], {"acc": torch.tensor(accuracy)})
    assert [group["lr"] for group in own.param_groups] == pytest.approx([0.2, 0.3])
    for wrong in (ReduceLROnPlateau(own, monitor="val/nope"), torch.optim.lr_scheduler.ReduceLROnPlateau(own)):
        with pytest.raises(InputError, match=r"monitor is (val/nope|None): take lightning\.pytorch\.cli\.Reduce"):
            scheduler_config(wrong)


# Look-ups


SQRT_HALF = 0.7071067811865476


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (6, 0.1 + 0.9 * (1 + SQRT_HALF) / 2),
        (8, 0.55),
        (10, 0.1 + 0.9 * (1 - SQRT_HALF) / 2),
        (12, 0.1),
        (13, 0.1),
        (1000, 0.1),
    ],
)
def test_table(step, factor):
    assert warmup_cosine(step, warmup_steps=4, total_steps=12, min_ratio=0.1) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "warmup_steps", "total_steps", "factor"),
    [
        (0, 0, 10, 1.0),
        (5, 0, 10, 0.5),
        (10, 0, 10, 0.0),
        (2, 3, 3, 1.0),
        (3, 3, 3, 0.0),
        (0, 0, 0, 0.0),
        (1, 4, None, 0.5),
        (4, 4, None, 1.0),
        (10**6, 4, None, 1.0),
    ],
)
def test_edges(step, warmup_steps, total_steps, factor):
    found = warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, min_ratio=0.0)
    assert found == pytest.approx(factor, abs=1e-15)


def test_a_weight_rises_in_a_line_and_stays():
    assert [linear_warmup(step, warmup_steps=4) for step in (0, 1, 3, 4, 9)] == [0, 0.25, 0.75, 1, 1]
    assert linear_warmup(0, warmup_steps=0) == 1
