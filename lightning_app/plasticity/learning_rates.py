"""Learning rates that differ where heads were removed: of layers by parameter group, of heads by update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_app.plasticity.report.events import GroupRate
from lightning_app.plasticity.units import Units


def set_layer_factors(trainer: L.Trainer, factors: dict[int, float]) -> None:
    """Multiply the learning rate of each block's parameter groups; 1 for those not named. Schedules go on from there.

    The groups are those of `LanguageModule.group_by_layer`; the factor is kept in them, so that a resume has it.
    """
    for optimizer in trainer.optimizers:
        schedulers = [c.scheduler for c in trainer.lr_scheduler_configs if c.scheduler.optimizer is optimizer]
        for i, group in enumerate(optimizer.param_groups):
            factor = factors.get(group.get("layer", -1), 1.0)
            ratio = factor / group.get("lr_factor", 1.0)
            group["lr_factor"] = factor
            group["lr"] *= ratio
            if "initial_lr" in group:
                group["initial_lr"] *= ratio
            for scheduler in schedulers:
                if hasattr(scheduler, "base_lrs"):  # ReduceLROnPlateau has none
                    scheduler.base_lrs[i] *= ratio


def described(trainer: L.Trainer) -> list[GroupRate]:
    """What each parameter group has now."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    names = {None: "all", -1: "outside the blocks"}
    return [
        GroupRate(
            name=names.get(group.get("layer"), f"block {group.get('layer')}")
            + (f", {group['part']}" if "part" in group else "")
            + ("" if group.get("weight_decay") else ", no decay"),
            lr=float(group["lr"]),
            factor=float(group.get("lr_factor", 1.0)),
        )
        for group in groups
    ]


class HeadRates:
    """Scales what an optimizer step changes in the weights of each unit: p <- p + factor (step(p) - p).

    A scale on gradients would be undone by Adam, which divides by their size.

    Args:
        units: of the model.
        factors: (L, N), 1 where nothing is to change.
    """

    def __init__(self, units: Units, factors: Tensor):
        self.units, self.factors = units, factors
        self._before: list[Tensor] = []
        self._handles: list[Any] = []

    def attach(self, optimizer: Optimizer) -> None:
        """From the next step on."""
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._scale),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], []

    def _parts(self) -> list[tuple[torch.nn.Parameter, Tensor]]:
        """Parameters and the factor of each of their positions along the units' dimension, where one is not 1."""
        found = []
        for layer, row in zip(self.units.layers, self.factors, strict=True):
            of_units = row[layer.present]
            if bool((of_units == 1).all()):
                continue
            for part in layer.parts:
                at = part.positions(layer.present)
                along = torch.ones(at.numel())
                along[at.flatten()] = of_units.repeat_interleave(at.shape[1]).float()
                shape = [1] * part.parameter.dim()
                shape[part.dim] = -1
                found.append((part.parameter, along.view(shape).to(part.parameter.device)))
        return found

    @torch.no_grad()
    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._before = [parameter.detach().clone() for parameter, _ in self._parts()]

    @torch.no_grad()
    def _scale(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for (parameter, factor), before in zip(self._parts(), self._before, strict=True):
            parameter.copy_(before + factor * (parameter - before))
        self._before = []


class FinetuningRates:
    """The learning rates of a cycle's fine-tuning: higher or lower where units were lost.

    Args:
        layer_factor: of the rate of each block that lost units.
        head_factor: of the updates of living heads in a layer that lost all; in others as far as it lost some.
    """

    def __init__(self, layer_factor: float, head_factor: float):
        self.layer_factor, self.head_factor = layer_factor, head_factor
        self._rates: HeadRates | None = None

    def begin(self, trainer: L.Trainer, heads: Units, masks: Sequence[Tensor]) -> Tensor | None:
        """Put them in force.

        Args:
            masks: (L, N) of each kind of units that is pruned, True where one is alive.

        Returns: (L, H) factors of the heads' updates, which `attach` takes after a resume; None: all are 1.
        """
        factors = None
        if self.layer_factor != 1:
            lost = {i for mask in (heads.mask, *masks) for i, row in enumerate(mask) if not bool(row.all())}
            set_layer_factors(trainer, dict.fromkeys(lost, self.layer_factor))
        if self.head_factor != 1:
            factors = head_factors(heads.mask, self.head_factor)
            self.attach(trainer, heads, factors)
        return factors

    def attach(self, trainer: L.Trainer, heads: Units, factors: Tensor) -> None:
        """Scale the rates of heads alone, as in a resumed run; the optimizer has the groups' rates."""
        self._rates = HeadRates(heads, factors)
        self._rates.attach(trainer.optimizers[0])

    def end(self, trainer: L.Trainer) -> None:
        """All rates as they would be without."""
        if self.layer_factor != 1:
            set_layer_factors(trainer, {})
        self.detach()

    def detach(self) -> None:
        """From the optimizer."""
        if self._rates is not None:
            self._rates.detach()
        self._rates = None


def head_factors(alive_LH: Tensor, factor: float) -> Tensor:
    """(L, H) 1 where a layer lost no head, `factor` where it lost all, and in between as far as it did."""
    lost = 1 - alive_LH.float().mean(1, keepdim=True)
    return (1 + (factor - 1) * lost).expand(alive_LH.shape).clone()
