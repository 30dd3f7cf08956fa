"""How a module is optimised: its optimizer and scheduler, parameter groups, the length of a run, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_app.data.accumulation import steps_in
from lightning_app.errors import InputError
from lightning_app.training.checkpoint_keys import OPTIMIZERS
from lightning_app.training.distributed import whole
from lightning_app.training.optimizers import made
from lightning_app.training.schedulers import WarmupCosine, scheduler_config
from lightning_app.training.schedules import Schedules

Named = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Optimisation:
    """How a module makes its optimizer and scheduler. A copy of the module shares it: what the command line hands over
    holds all of the command line, and under DDP the processes that it has started, which cannot be copied."""

    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None
    schedules: Schedules = field(default_factory=Schedules)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimisation:
        return self

    def configured(self, groups: list[dict[str, Any]], *, steps: Callable[[], int]) -> Any:
        """What `configure_optimizers` returns.

        Args:
            groups: of parameters.
            steps: the optimizer steps of the run, for a `WarmupCosine` that was given none.

        Raises:
            InputError: no parameter is trained, or an option of theirs is refused.
        """
        if not groups:
            raise InputError("there is nothing to train: all weights are frozen, and nothing on top of them learns")
        optimizer = made("model.init_args.optimizer", self.optimizer, groups)
        self.schedules.check(optimizer)
        if self.scheduler is None:
            return optimizer
        scheduler = made("model.init_args.scheduler", self.scheduler, optimizer)
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            _set_length(scheduler, steps())
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler)}


def _set_length(scheduler: WarmupCosine, steps: int) -> None:
    if steps < scheduler.warmup_steps:
        rank_zero_warn(f"the run has {steps} steps, so it ends within the {scheduler.warmup_steps} of its warm-up")
    scheduler.set_total_steps(max(steps, scheduler.warmup_steps))


# Parameter groups


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """With the names that they have without FSDP's wrapper."""
    named = module.named_parameters()
    return [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in named if p.requires_grad]


def matrices_of(module: nn.Module) -> set[str]:
    """Names of the parameters with weight decay. FSDP shows a shard of one dimension: look before it wraps."""
    return {name for name, parameter in module.named_parameters() if parameter.dim() >= 2}


def parameter_groups(trained: Named, matrices: Container[str], *, by_layer: bool) -> list[dict[str, Any]]:
    """Matrices with weight decay and others without; `by_layer` those of each block apart, under the key "layer" (-1:
    no block's)."""
    layer_of = {name: layer_of_parameter(name) if by_layer else None for name, _ in trained}
    groups: list[dict[str, Any]] = []
    for layer in dict.fromkeys(layer_of.values()):
        own = [(name, p) for name, p in trained if layer_of[name] == layer]
        of_layer = {} if layer is None else {"layer": layer}
        decayed = {"params": [p for name, p in own if name in matrices], **of_layer}
        others = {"params": [p for name, p in own if name not in matrices], "weight_decay": 0.0, **of_layer}
        groups += [group for group in (decayed, others) if group["params"]]
    return groups


def layer_of_parameter(name: str) -> int:
    """The number of the block in a parameter's name ("transformer.h.3.attn.c_attn.weight": 3); -1: of no block."""
    numbers = [part for part in name.split(".") if part.isdecimal()]
    return int(numbers[0]) if numbers and name.startswith("backbone.") else -1


def grouped_by_layer(checkpoint: dict[str, Any], *, wanted: bool) -> bool:
    """Whether a resume has groups by layer: it needs those that the checkpoint's optimizer had.

    Raises:
        InputError: the checkpoint has none, and they are wanted.
    """
    groups = [group for state in checkpoint.get(OPTIMIZERS, []) for group in state["param_groups"]]
    has_layers = any("layer" in group for group in groups)
    if groups and wanted and not has_layers:
        raise InputError(
            "the checkpoint's optimizer has one learning rate for all layers, and layer_lr_factor needs one for "
            "each: set layer_lr_factor: 1, or take the weights alone (--init_from)"
        )
    return wanted or has_layers


# The length of a run


def optimizer_steps(trainer: L.Trainer, batches_per_epoch: Callable[[], int] | None) -> int:
    """Steps that a run will do: from max_steps and max_epochs, without touching the trainer's loaders.

    Args:
        trainer: of the run.
        batches_per_epoch: all that its data has; None: not known, the trainer makes its loaders to count them.
    """
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if (trainer.max_epochs or -1) > 0:
        limits.append(_steps_in_epochs(trainer, batches_per_epoch))
    if not limits:
        raise InputError("a schedule needs the length of the run: give trainer.max_steps or trainer.max_epochs")
    return max(1, min(limits))


def _steps_in_epochs(trainer: L.Trainer, batches_per_epoch: Callable[[], int] | None) -> int:
    epochs = trainer.max_epochs
    if batches_per_epoch is None:
        return epochs * math.ceil(trainer.estimated_stepping_batches / max(1, epochs))
    batches, limit = batches_per_epoch(), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return steps_in(trainer, epochs=epochs, batches=batches)


# Gradients


def clip(
    module: L.LightningModule, optimizer: torch.optim.Optimizer, value: float | None, algorithm: str | None
) -> Tensor | None:
    """Clip the gradients as the trainer's options say.

    Returns:
        Their norm before, so that logging it costs nothing; None where it is not known, or is not logged.
    """
    trainer = module.trainer
    if algorithm == "value":
        module.clip_gradients(optimizer, value, algorithm)
        return None
    if isinstance(trainer.strategy, DeepSpeedStrategy):  # clips within its own step
        return None
    if isinstance(trainer.strategy, FSDPStrategy):  # no rank has all gradients: FSDP's own way
        return trainer.model.clip_grad_norm_(value or math.inf)
    if value:
        return whole(nn.utils.clip_grad_norm_(module.parameters(), value))
    return gradient_norm(module) if (trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0 else None


def gradient_norm(module: nn.Module) -> Tensor:
    """The norm of all gradients."""
    return whole(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
