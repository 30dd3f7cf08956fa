"""Learning rate schedules: pure look-ups, a step in and a number out, and torch schedulers around them."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_app.errors import InputError

MEASURES = ("val/ce", "val/ppl", "val/bpb", "val/acc", "val/f1")  # what a scheduler may wait for


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int | None, min_ratio: float) -> float:
    """The factor of the learning rate in optimizer step `step` (counted from 0).

    Rises by 1 / warmup_steps per step from 1 / warmup_steps in step 0 to 1, then follows half a cosine down to
    `min_ratio` in step `total_steps`, and stays there. Without `total_steps` it stays at 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if total_steps is None:
        return 1.0
    if step >= total_steps:
        return min_ratio
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_warmup(step: int, *, warmup_steps: int) -> float:
    """The factor of a weight in step `step` (counted from 0): from 0 up to 1 in `warmup_steps` steps; 1 without any."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


class WarmupCosine(torch.optim.lr_scheduler.LambdaLR):
    """Linear warm-up, then a cosine down to `min_ratio` of the optimizer's lr.

    Step it once per optimizer step. Its state is the position alone, in plain types: a resume takes the shape
    (warm-up, length, floor) from the configuration, so that a run can be made longer.

    Args:
        optimizer: its lr is the peak.
        warmup_steps: optimizer steps until the peak is reached; 0 starts there.
        min_ratio: the last factor, 0 to 1.
        total_steps: optimizer steps until `min_ratio` is reached; None stays at the peak until `set_total_steps`.

    Raises:
        InputError: more warm-up than steps, or a number out of range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        warmup_steps: int = 100,
        min_ratio: float = 0.1,
        total_steps: int | None = None,
    ) -> None:
        if warmup_steps < 0 or not 0.0 <= min_ratio <= 1.0:
            raise InputError(
                f"warmup_steps is {warmup_steps} and min_ratio {min_ratio}; "
                "warmup_steps must be at least 0 and min_ratio between 0 and 1"
            )
        self.warmup_steps = warmup_steps
        self.min_ratio = min_ratio
        self.total_steps: int | None = None
        if total_steps is not None:
            self.set_total_steps(total_steps)
        super().__init__(optimizer, self._factor)

    def set_total_steps(self, total_steps: int) -> None:
        """Set where the cosine ends; counts from the next `step` on (the warm-up does not depend on it).

        Raises:
            InputError: the warm-up is longer than that.
        """
        if self.warmup_steps > total_steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps} but training ends after {total_steps} steps (total_steps); "
                "lower warmup_steps or train longer"
            )
        self.total_steps = total_steps

    def _factor(self, step: int) -> float:
        return warmup_cosine(
            step, warmup_steps=self.warmup_steps, total_steps=self.total_steps, min_ratio=self.min_ratio
        )

    def state_dict(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("base_lrs", "last_epoch", "_step_count", "_last_lr")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.__dict__.update(state_dict)


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """How Lightning is to step a scheduler: after each optimizer step, or, if it needs a metric, not by itself.

    Raises:
        InputError: it needs a metric and names none that a validation has.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    monitor = getattr(scheduler, "monitor", None)
    if monitor not in MEASURES:
        raise InputError(
            f"model.init_args.scheduler is a ReduceLROnPlateau whose monitor is {monitor}: take "
            f"lightning.pytorch.cli.ReduceLROnPlateau with a monitor of {', '.join(MEASURES)}"
        )
    return {"scheduler": scheduler, "interval": "epoch", "frequency": sys.maxsize, "monitor": monitor}  # never


def step_on_plateau(schedulers: Sequence[Any], measures: Mapping[str, torch.Tensor]) -> None:
    """Step those that need a metric with what a validation found: before its checkpoint is written."""
    for scheduler in schedulers:
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(float(measures[str(vars(scheduler)["monitor"]).removeprefix("val/")]))
