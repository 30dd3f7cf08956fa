"""What share of the tokens that a run has seen came from each of its sources."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.data.mixture import Mixture
from lightning_app.training.callbacks.run_callback import RunCallback


class SourceShares(RunCallback):
    """Logs `train/share_NAME` for each of several sources: its share of the tokens so far, padding left out.

    Counted batch by batch on each rank; a resumed run goes on with the counts of all ranks.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None  # (sources,) int64, on this rank

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        mixture = self._mixture()
        if mixture is None:
            self._seen = None
        elif self._seen is None or len(self._seen) != len(mixture.parts):
            self._seen = torch.zeros(len(mixture.parts), dtype=torch.int64)

    def _mixture(self) -> Mixture | None:
        dataset = self.data.dataset("train") if self.has_data and not self.data.streamed("train") else None
        return dataset if isinstance(dataset, Mixture) else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        mixture = self._mixture() if self._seen is not None else None
        if mixture is None or self._seen is None:
            return
        parts = mixture.part_of(batch.document_ids[batch.attention_mask])
        self._seen += torch.bincount(parts.cpu(), minlength=len(self._seen))
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            seen = self._of_all_ranks()
            for label, share in zip(mixture.labels, (seen / seen.sum().clamp_min(1)).tolist(), strict=True):
                pl_module.log(f"train/share_{label}", share)

    def _of_all_ranks(self) -> Tensor:
        """(sources,) int64; a collective."""
        assert self._seen is not None
        trainer, module = self._in_run
        own = self._seen.clone().to(module.device)  # the sum is written into it
        total: Any = trainer.strategy.reduce(own, reduce_op="sum")
        return total.cpu()

    def state_dict(self) -> dict[str, Any]:
        """The counts of all ranks; a collective, as saving a checkpoint is."""
        return {} if self._seen is None else {"seen": self._of_all_ranks().tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        seen = torch.tensor(state_dict["seen"], dtype=torch.int64)
        self._seen = seen if self._in_run[0].is_global_zero else torch.zeros_like(seen)
