"""The smallest fit that Lightning itself runs: 3 batches an epoch, a number logged in each step and validation."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lightning_app.data.loader import ResumableLoader

BATCHES = 3  # per epoch


class Rows:
    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices).float()[:, None]


class Small(L.LightningModule):
    """`val` is what each of its validations finds, in turn (1 after those)."""

    def __init__(self, val: tuple[float, ...] = ()):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)
        self.left = list(val)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("rows", batch.sum())
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.log("val", self.left.pop(0) if self.left else 1.0)

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(Rows(), batch_size=2)

    val_dataloader = train_dataloader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Lines(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.options: dict[str, Any] = {}

    name = version = "lines"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.options |= dict(vars(params) if isinstance(params, Namespace) else params)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_steps": 5, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **limits, **options})
