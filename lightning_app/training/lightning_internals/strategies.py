"""DistributedDataParallel under Lightning's strategy."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


def wrap_again(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Under DDP: wrap a module whose parameters were replaced. DDP holds on to those that it was made with.

    Seen in Lightning 2.6.6.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy._setup_model(module)
        strategy._register_ddp_hooks()


def do_not_send(module: L.LightningModule, names: Sequence[str]) -> None:
    """Let DDP leave buffers alone that all ranks keep equal by themselves. Seen in torch 2.13."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))
