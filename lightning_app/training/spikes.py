"""`skip_spikes`: a step whose loss or gradient stands far out changes nothing."""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_app.data.strategies import shards_parameters
from lightning_app.errors import InputError
from lightning_app.training.spike_rule import ENOUGH, WINDOW, is_spike, limit

DEVIATIONS = 6.0
IN_A_ROW = 8  # as many are not spikes: the level is another one, and is learned anew


class SpikeGuard:
    """Decides before each update whether to leave it out: the mean loss of its batches, or the norm of its gradient
    before clipping, is beyond so many standard deviations of the last 128 steps that were not left out.

    The step counts in the schedule and in `global_step`. Weights, the optimizer's state, memories and categories stay
    as they were: gradients are dropped, and an optimizer leaves parameters without one alone.

    After 8 such steps in a row the window starts anew: the level has changed, and the run must not stand still.

    Args:
        deviations: standard deviations; true means 6.
    """

    def __init__(self, deviations: float | bool = True):
        self.deviations = DEVIATIONS if deviations is True else float(deviations)
        if not 0 < self.deviations < float("inf"):
            raise InputError(f"skip_spikes is {deviations}; it must be true, false or a number above 0")
        self.seen: dict[str, deque[float]] = {"loss": deque(maxlen=WINDOW), "gradient norm": deque(maxlen=WINDOW)}
        self.skipped = self._in_a_row = 0
        self.skips = False  # the step in work

    @staticmethod
    def check(trainer: L.Trainer) -> None:
        """Raises InputError where gradients cannot be looked at, or dropped."""
        if shards_parameters(trainer.strategy):
            raise InputError(
                f"skip_spikes cannot look at the gradients of {type(trainer.strategy).__name__}, which shards them: "
                "use ddp or one device, or leave it out"
            )
        plugin = trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            raise InputError("skip_spikes does not go with trainer.precision 16-mixed, which scales gradients")

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen to judge one, so that a loss that is not finite is left out too."""
        return len(self.seen["loss"]) >= ENOUGH

    def judge(self, trainer: L.Trainer, loss: Tensor, norm: Tensor) -> bool:
        """Whether to leave the step out; all ranks call it together and get the same answer.

        Args:
            loss: of all batches of the step.
            norm: of the gradient, before clipping.
        """
        found = {"loss": float(trainer.strategy.reduce(loss, reduce_op="mean")), "gradient norm": float(norm)}
        spikes = [name for name, x in found.items() if is_spike(x, list(self.seen[name]), deviations=self.deviations)]
        self.skips = trainer.strategy.reduce_boolean_decision(bool(spikes), all=False)
        if self.skips:
            self._skip(trainer.global_step, spikes, found)
        else:
            self._in_a_row = 0
            for name, x in found.items():
                self.seen[name].append(x)
        return self.skips

    def _skip(self, step: int, spikes: list[str], found: dict[str, float]) -> None:
        self.skipped += 1
        self._in_a_row += 1
        limits = {name: limit(list(self.seen[name]), deviations=self.deviations) for name in spikes}
        told = " and ".join(f"its {name} is {found[name]:.4g} (limit {limits[name]:.4g})" for name in spikes)
        rank_zero_warn(
            f"step {step} is left out: {told or 'another rank says so'}; the limit is {self.deviations:g} standard "
            f"deviations above the mean of the last {len(self.seen['loss'])} steps"
        )
        if self._in_a_row == IN_A_ROW:
            self._in_a_row = 0
            for values in self.seen.values():
                values.clear()

    def state_dict(self) -> dict[str, Any]:
        seen = {name: list(values) for name, values in self.seen.items()}
        return {"seen": seen, "skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = {name: deque(values, maxlen=WINDOW) for name, values in state["seen"].items()}
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
