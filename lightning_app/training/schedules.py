"""Weight decay and momentum by step: data, a pure look-up, and what puts the numbers into an optimizer's groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from lightning_app.errors import InputError
from lightning_app.training.schedulers import warmup_cosine

SCHEDULED = ("weight_decay", "momentum", "betas")
KEY = "model.init_args.schedules"


@dataclass(frozen=True)
class Ramp:
    """The factor of a number of the optimizer: in a line from `start_ratio` to 1, then half a cosine to `end_ratio`.

    Args:
        warmup_steps: optimizer steps until the factor is 1; 0 starts there.
        start_ratio: the factor in step 0.
        end_ratio: the factor in step `total_steps` and later.
        total_steps: optimizer steps; None: those of the run.

    Raises:
        InputError: a number below 0.
    """

    warmup_steps: int = 0
    start_ratio: float = 0.0
    end_ratio: float = 1.0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{KEY}: {name} is {value}; it must be at least 0")

    def factor(self, step: int, total_steps: int) -> float:
        """In optimizer step `step`, counted from 0, of a run of `total_steps`."""
        if step < self.warmup_steps:
            return self.start_ratio + (1 - self.start_ratio) * step / self.warmup_steps
        end = self.total_steps or total_steps
        return warmup_cosine(step, warmup_steps=self.warmup_steps, total_steps=end, min_ratio=self.end_ratio)


@dataclass(frozen=True)
class Schedules:
    """What else follows the steps of a run beside the learning rate. Only the step decides, so that a resume needs no
    state: the number that a schedule starts from stands in each group, as `initial_lr` does.

    Args:
        weight_decay: of all groups that decay.
        momentum: of groups that have one (Muon, SGD).
        betas: of the first beta, Adam's momentum.
    """

    weight_decay: Ramp | None = None
    momentum: Ramp | None = None
    betas: Ramp | None = None

    @property
    def some(self) -> bool:
        return any(getattr(self, name) is not None for name in SCHEDULED)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuses a schedule of what no group has, and a momentum that would reach 1."""
        for name in SCHEDULED:
            ramp, bases = getattr(self, name), [group[name] for group in optimizer.param_groups if name in group]
            if ramp is None:
                continue
            if not bases:
                has = ", ".join(other for other in SCHEDULED if any(other in g for g in optimizer.param_groups))
                raise InputError(f"{KEY} has {name}, which the optimizer has not; it has {has or 'none of them'}")
            largest = max(_first(base) for base in bases) * max(1.0, ramp.start_ratio, ramp.end_ratio)
            if name != "weight_decay" and largest >= 1:
                raise InputError(f"{KEY}.{name} reaches {largest:g}; it must stay below 1: lower its ratios")

    def put(self, optimizer: torch.optim.Optimizer, step: int, total_steps: int) -> None:
        """The numbers of a step into the groups; those of a checkpoint that had a schedule go back without one."""
        for name in SCHEDULED:
            ramp = getattr(self, name)
            for group in optimizer.param_groups:
                if name in group and (ramp is not None or f"initial_{name}" in group):
                    base = group.setdefault(f"initial_{name}", group[name])
                    group[name] = _scaled(base, 1.0 if ramp is None else ramp.factor(step, total_steps))

    def shown(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """The largest of the numbers that have a schedule, for the log."""
        found = {}
        for name in SCHEDULED:
            if getattr(self, name) is not None:
                found[name] = max(_first(group[name]) for group in optimizer.param_groups if name in group)
        return found


def _first(number: Any) -> float:
    return float(number[0] if isinstance(number, tuple | list) else number)


def _scaled(base: Any, factor: float) -> Any:
    return (base[0] * factor, *base[1:]) if isinstance(base, tuple | list) else base * factor
