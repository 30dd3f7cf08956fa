"""A run that goes on keeps its best checkpoints, wherever its folder lies now and however its path is spelt."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.checkpoint_keys import CALLBACKS
from lightning_app.training.lightning_internals.best_checkpoint import State, relocated
from lightning_app.training.lightning_internals.callbacks import model_checkpoints


class KeptBest(RunCallback):
    """Moves what each ModelCheckpoint remembers to the folder in which the run goes on.

    A file that lies in the folder counts with the score that it has of itself: it may be newer than the checkpoint
    from which the run goes on. A file that is not there is forgotten, so that a run which goes on in another folder
    begins its best anew.
    """

    priority = Priority.RESUME

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint[CALLBACKS]
        for callback in model_checkpoints(trainer):
            if callback.state_key in states and callback.dirpath:
                state = states[callback.state_key]
                kept = relocated(state, str(callback.dirpath), key=callback.state_key, mode=callback.mode)
                states[callback.state_key] = trainer.strategy.broadcast(kept)
                _tell(state, kept)


def _tell(before: State, now: State) -> None:
    if before["best_model_path"] and not now["best_model_path"]:
        score = math.nan if before["best_model_score"] is None else float(before["best_model_score"])
        rank_zero_info(
            f"{before['best_model_path']} ({before['monitor']} {score:.4f}) does not lie whole in {now['dirpath']}, "
            "so the best checkpoint there begins anew"
        )
