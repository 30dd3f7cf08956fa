"""Lightning's loggers, placed in the run's folder: one that was given no place of its own lies there."""

from __future__ import annotations

import importlib
import io
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app.errors import InputError, first_line
from lightning_app.io import write_atomic
from lightning_app.reports.run_folder import CSV, RunFolder

UNNAMED = "lightning_logs"  # what Lightning calls a logger that was given no name


def placed(loggers: Sequence[Logger], options: Sequence[Mapping[str, Any]], folder: Path) -> list[Logger]:
    """Loggers as they were configured; those of Lightning's that have no place of their own are made anew.

    Two overlays may each bring TensorBoard's: the folder gets one.

    Args:
        loggers: none of them has written anything yet.
        options: the arguments that each was made with.
        folder: of the run, RUNS_DIR/NAME/version_N.
    """
    found = [_placed(logger, given, folder) for logger, given in zip(loggers, options, strict=True)]
    events = [logger for logger in found if isinstance(logger, TensorBoardLogger) and Path(logger.log_dir) == folder]
    return [logger for logger in found if logger not in events[1:]]


def tensorboard(folder: Path, **options: Any) -> TensorBoardLogger:
    """Writes its events into the folder itself."""
    place = {"save_dir": folder.parent.parent, "name": folder.parent.name, "version": folder.name}
    return TensorBoardLogger(**{"default_hp_metric": False, **options, **place})


def _placed(logger: Logger, options: Mapping[str, Any], folder: Path) -> Logger:
    if type(logger) is TensorBoardLogger and options.get("name") == UNNAMED:
        return tensorboard(folder, **options)
    if type(logger) is CSVLogger and options.get("name") == UNNAMED:
        # a version of its own for each start: a CSVLogger that goes on in a folder deletes what lies there
        return CSVLogger(**{**options, "save_dir": folder, "name": CSV})
    if type(logger) is WandbLogger:
        _make(folder)  # where there is no such folder wandb takes the system's temporary one
        name = options.get("name") or RunFolder(folder).title
        place = {"save_dir": folder, "name": name} if options.get("save_dir") == "." else {}
        return WandbLogger(
            **{**options, **place, "id": options.get("id") or options.get("version") or _wandb_id(folder)}
        )
    return logger


@rank_zero_only
def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


@rank_zero_only
def _wandb_id(folder: Path) -> str | None:
    """The same whenever the run goes on, so that its curves do (Lightning resumes a run whose id is known). None where
    the environment names the run, as a sweep does."""
    if any(os.environ.get(name) for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID")):
        return None
    path = RunFolder(folder).wandb_id
    return path.read_text(encoding="utf-8").strip() if path.is_file() else uuid.uuid4().hex[:12]


@rank_zero_only
def keep_ids(loggers: Sequence[Logger], folder: Path) -> None:
    """Write what a run that goes on needs; not before training begins, as a refused run leaves its folder alone."""
    path = RunFolder(folder).wandb_id
    for logger in loggers:
        if type(logger) is WandbLogger and isinstance(logger.version, str) and not path.is_file():
            write_atomic(path, logger.version.encode())


@rank_zero_only
def connect(loggers: Sequence[Logger]) -> None:
    """Begin the runs of Weights & Biases. It asks for a key on a terminal, so it gets none.

    Raises:
        InputError: there is no key, or no way to the server.
    """
    for logger in loggers:
        if type(logger) is WandbLogger:
            terminal, sys.stdin = sys.stdin, io.StringIO()
            try:
                _ = logger.experiment
            except importlib.import_module("wandb").Error as error:  # which is there, and no dependency of ours
                raise InputError(
                    f"WandbLogger cannot begin ({first_line(error)}): set WANDB_MODE=offline (`wandb sync` sends the "
                    "run later), or leave the logger out"
                ) from error
            finally:
                sys.stdin = terminal
