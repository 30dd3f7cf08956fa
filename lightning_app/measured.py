"""The end of `validate` and `test`: what the text that was measured needs without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.peers import LIMIT, Peers, peers_of
from lightning_app.reports import beside
from lightning_app.reports.events import Data, Measured, SplitCounts
from lightning_app.reports.series import events
from lightning_app.reports.tables import format_table
from lightning_app.training.callbacks.dynamic_evaluation import COMMANDS, DynamicEvaluation
from lightning_app.training.callbacks.run_log import RunLog, run_folder
from lightning_app.training.lightning_internals.callbacks import of_kind
from lightning_app.training.module import LanguageModule

SPLIT = {"validate": "val", "test": "test"}


def close_evaluation(trainer: L.Trainer) -> None:
    """Print and log it; on rank 0. Nothing where the log of the model's run does not say that `data.train` is what it
    was trained on, or where that is too much text."""
    split, data = SPLIT[str(trainer.state.fn.value)], trainer.datamodule
    bpb = trainer.callback_metrics.get(f"{split}/bpb")
    if bpb is None or not isinstance(data, TextDataModule) or not measures_all(trainer, split):
        return
    if not _has_its_training_text(trainer, data) or (peers := peers_of(data, split)) is None:
        return
    measured = Measured(split=split, bpb=float(bpb), **figures(trainer, peers))
    RunLog.event(trainer, measured)
    print("\n" + format_table(beside.rows(beside.of([measured])), title=f"bits per byte of {beside.TEXTS[split]}"))


def measures_all(trainer: L.Trainer, split: str) -> bool:
    """Whether an evaluation reads the whole text of a split. An int is a number of batches."""
    limit = getattr(trainer, f"limit_{split}_batches")
    return isinstance(limit, float) and limit == 1


def figures(trainer: L.Trainer, peers: Peers | None) -> Mapping[str, Any]:
    """Fields of an event that says what a model stands beside."""
    found = {f"{name}_bpb": bits for name, bits in asdict(peers).items()} if peers else {"lzma_bpb": None}
    return {**found, "adapts": _adapts(trainer)}


def _adapts(trainer: L.Trainer) -> bool:
    follows = trainer.state.fn in COMMANDS and bool(of_kind(trainer, DynamicEvaluation))
    module = trainer.lightning_module
    return follows or (isinstance(module, LanguageModule) and any(one.adapts for one in module.extensions))


def _has_its_training_text(trainer: L.Trainer, data: TextDataModule) -> bool:
    """Whether `data.train` is what the run's log says: asked before a large text is read."""
    folder = run_folder(trainer)
    logged = [one.splits or [] for one in events(folder.records() if folder else [], Data)]
    train = next((one for one in (logged[-1] if logged else []) if one.split == "train"), None)
    if train is None or train.bytes is None or train.bytes > LIMIT or not data.splits.origin("train"):
        return False
    if _is(train, data):
        return True
    rank_zero_info("data.train is not the text that the run was trained on: nothing stands beside its bits per byte")
    return False


def _is(logged: SplitCounts, data: TextDataModule) -> bool:
    try:
        tokens = data.tokens("train")
    except InputError:  # it is gone: the evaluation is done without it
        return False
    return logged.bytes == tokens.n_bytes and logged.text in (None, tokens.manifest.content_sha256[:16])
