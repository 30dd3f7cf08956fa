"""predictions.jsonl: what `predict` finds, one sequence a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_app.data.loader import ResumableLoader
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.callbacks.run_log import run_folder


class PredictionWriter(RunCallback, BasePredictionWriter):
    """Writes the rows of `predict_step` as they come: the sequences in data order.

    With several ranks each writes a file of its own, `predictions.rank1.jsonl` and so on, with its share of the
    sequences; `window` counts them over all ranks, in data order.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.path: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            folder = run_folder(trainer) or RunFolder(Path())
            self.path = folder.predictions(trainer.global_rank if trainer.world_size > 1 else None)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not before: a command that is refused leaves the rows of an earlier one."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self.path is not None
        loader = trainer.predict_dataloaders
        if isinstance(loader, ResumableLoader):
            numbers = loader.windows(batch_idx)
            prediction = [{"window": n, **row} for n, row in zip(numbers, prediction, strict=True)]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in prediction)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        print(f"predictions: {self.path}")
