"""A run that goes on keeps its best checkpoints, wherever its folder lies now and however its path is spelt."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_app.errors import DamagedError, InputError
from lightning_app.reports.run_folder import generations
from lightning_app.training.checkpoint import CALLBACKS
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.find_checkpoint import whole_generation

State = dict[str, Any]  # of a ModelCheckpoint


class KeptBest(L.Callback):
    """Moves what each ModelCheckpoint remembers to the folder in which the run goes on.

    Lightning forgets the scores where `dirpath` is not spelt as it was, and the next validation then overwrites the
    best checkpoint with whatever the model is. Here a file that lies in the folder counts with the score that it has
    of itself: it may be newer than the checkpoint from which the run goes on. A file that is not there is forgotten,
    so that a run which goes on in another folder begins its best anew.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: State) -> None:
        states = checkpoint[CALLBACKS]
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states and callback.dirpath:
                state = states[callback.state_key]
                kept = relocated(state, str(callback.dirpath), key=callback.state_key, mode=callback.mode)
                states[callback.state_key] = trainer.strategy.broadcast(kept)
                _tell(state, kept)


def relocated(state: State, dirpath: str, *, key: str, mode: str) -> State:
    """A ModelCheckpoint's state with the paths that its files have in `dirpath`, as far as they are there.

    Args:
        state: as a checkpoint has it.
        dirpath: where the files lie now.
        key: under which a checkpoint keeps this state.
        mode: "min" or "max", which scores are better.
    """
    here = {path: _here(path, state["dirpath"], dirpath) for path in _paths(state)}
    recorded: Mapping[str, Tensor] = {here[path]: score for path, score in state["best_k_models"].items() if here[path]}
    own = {path: _own_score(path, key, otherwise=score) for path, score in recorded.items()}
    scores = {path: score for path, score in own.items() if score is not None}
    best, worst = (min, max) if mode == "min" else (max, min)
    first = best(scores, key=scores.__getitem__, default="")
    kth = worst(scores, key=scores.__getitem__, default="")
    without_scores = here.get(state["best_model_path"], "") if not state["best_k_models"] else ""
    return {
        **state,
        "dirpath": dirpath,
        "best_k_models": scores,
        "best_model_path": first or without_scores,
        "best_model_score": scores.get(first),
        "kth_best_model_path": kth,
        "kth_value": scores.get(kth, torch.tensor(math.inf if mode == "min" else -math.inf)),
        "last_model_path": here.get(state["last_model_path"], ""),
    }


def _paths(state: State) -> list[str]:
    return [*state["best_k_models"], state["best_model_path"], state["last_model_path"]]


def _here(path: str, old: str | None, new: str) -> str:
    """Where a file of the folder `old` lies in `new`; "" if it does not."""
    if not path or not old:
        return ""
    found = os.path.join(new, os.path.relpath(path, old))  # spelt as Lightning spells it: it compares the words
    return found if generations(Path(found)) else ""


def _own_score(path: str, key: str, *, otherwise: Tensor) -> Tensor | None:
    """What a checkpoint, or where it is damaged the generation before it, says of itself; None where both are damaged.

    One without callbacks' states or in shards says nothing.
    """
    try:
        checkpoint = read_checkpoint(whole_generation(Path(path)), mmap=True)
    except DamagedError:
        return None
    except InputError:
        return otherwise
    score = checkpoint.get("callbacks", {}).get(key, {}).get("current_score")
    return otherwise if score is None else score.clone()


def _tell(before: State, now: State) -> None:
    if before["best_model_path"] and not now["best_model_path"]:
        score = math.nan if before["best_model_score"] is None else float(before["best_model_score"])
        rank_zero_info(
            f"{before['best_model_path']} ({before['monitor']} {score:.4f}) does not lie whole in {now['dirpath']}, "
            "so the best checkpoint there begins anew"
        )
