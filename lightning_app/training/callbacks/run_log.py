"""log.jsonl: every number and event of a run, one JSON object a line. Reports are drawn from it alone."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app.data.datamodule import TextDataModule
from lightning_app.reports.events import Data, Ended, Failed, PassageSums, SplitCounts, Started
from lightning_app.reports.intervals import SUMS
from lightning_app.reports.log import line_of
from lightning_app.reports.log import read_log as read_log  # beside what writes it
from lightning_app.reports.record import Event
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.checkpoint import Checkpoint, put
from lightning_app.training.lightning_internals.step_log import log_hyperparameters, numbers_of_step, step_to_log
from lightning_app.training.loggers import connect, keep_ids


def _plain(value: float) -> float | int | None:
    """JSON has no NaN and no infinity: they become null."""
    return value if isinstance(value, int) or math.isfinite(value) else None


class JSONLinesLogger(Logger):
    """Appends to `path`, line by line, so that a killed run keeps what it logged.

    `step` counts the optimizer steps done.

    Args:
        path: of the file.
        event: what the numbers belong to if not to training, such as "test"; they are then no part of its curves.
    """

    def __init__(self, path: Path, event: str | None = None):
        super().__init__()
        self.path, self.event = path, event
        self._lines: int | None = None  # of the file; unknown before it is looked at
        self._early: tuple[int | None, dict[str, Any]] = (None, {})

    @property
    def lines(self) -> int:
        """How many the file has. A crash may have cut the last one of an earlier process: it is ended."""
        if self._lines is None:
            text = self.path.read_bytes() if self.path.is_file() else b""
            if text and not text.endswith(b"\n"):
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n")
                text += b"\n"
            self._lines = text.count(b"\n")
        return self._lines

    @property
    def name(self) -> str:
        return self.path.parent.parent.name

    @property
    def version(self) -> str:
        return self.path.parent.name

    @property
    def save_dir(self) -> str:
        """What `trainer.log_dir` is where there is no other logger."""
        return str(self.path.parent)

    @rank_zero_only
    def write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.lines
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line_of({"time": round(time.time(), 3), **record}))
        self._lines = lines + 1

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        done = None if step is None else step + 1  # Lightning numbers the steps from 0
        head = {"event": self.event} if self.event else {"step": done}
        early, self._early = self._early, (None, {})
        written = early[1] if early[0] == step else {}
        left = {name: _plain(value) for name, value in metrics.items() if name not in written}
        if left or not written:
            self.write({**head, **left})

    @property
    def early_step(self) -> int | None:
        """The step of the numbers that were written early and that `log_metrics` has not been called with yet."""
        return self._early[0]

    def log_early(self, metrics: dict[str, float], step: int) -> None:
        """Write what `log_metrics` will be called with next, and not again then."""
        self.log_metrics(metrics, step)
        self._early = (step, metrics)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The resolved config has a file of its own."""


class RunLog(RunCallback):
    """Adds `log.jsonl` to the run's folder, beside whatever loggers there are.

    The numbers of a step are written before a checkpoint of that step, and the checkpoint knows how many lines there
    were: those that follow do not count when a run goes on from it, since it writes them again.

    Other callbacks call `RunLog.event(trainer, event)`, with one of `reports.events` or of their own, and ask
    `run_folder(trainer)` where to write: in a Trainer made in Python put it before them.

    Nothing is written before training begins, so that a resume which is refused leaves the run's folder as it was.

    Args:
        folder: the run's. None: the first logger's; without a logger nothing is written then.
        loggers: those that the trainer gets once training begins: they make their files when they are asked for.
        logs_errors: False: another callback calls `log_error`, once the last step is saved.
    """

    priority = Priority.LOG

    def __init__(self, folder: Path | None = None, loggers: Sequence[Logger] = (), logs_errors: bool = True):
        self.folder = folder
        self._waiting = list(loggers)
        self._begun = False
        self.logs_errors = logs_errors
        self._lines: int | None = None  # in the log when the checkpoint of a resume was written

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        own = trainer.strategy.broadcast(str(self.folder)) if self.folder else None
        folder = own or (trainer.log_dir if trainer.loggers else None)  # which the trainer broadcasts
        event = None if stage == "fit" else str(trainer.state.fn.value)
        has_one = any(isinstance(logger, JSONLinesLogger) for logger in trainer.loggers)
        if folder and not has_one and not trainer.fast_dev_run:
            trainer.loggers = [*trainer.loggers, JSONLinesLogger(RunFolder(Path(folder)).log_file, event)]

    @staticmethod
    def event(trainer: L.Trainer, event: Event) -> None:
        """Log something that happened, at the step that the trainer has reached."""
        for logger in _own(trainer):
            logger.write(replace(event, step=trainer.global_step, epoch=trainer.current_epoch).to_json())

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)  # there is none before a resume

    def _begin(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:
            connect(self._waiting)
        self._begun = True
        if self._waiting and not trainer.fast_dev_run:
            keep_ids(self._waiting, self.folder or Path(str(trainer.default_root_dir)))
            trainer.loggers, self._waiting = [*self._waiting, *trainer.loggers], []
            log_hyperparameters(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)
        self.event(trainer, Data(splits=_splits(self.data) if self.has_data else []))
        started = Started(
            model=type(pl_module).__name__,
            parameters=sum(p.numel() for p in self.module.own_parameters()),
            world_size=trainer.world_size,
            precision=str(trainer.precision),
            flops_per_token=self.module.backbone.flops_per_token(self.data.block_size) if self.has_data else None,
            max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
        )
        self.event(trainer, started.resumed(lines=self._lines) if trainer.ckpt_path else started)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The module's own hook comes too late for a checkpoint that is written in a callback's."""
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            self.module.log_early()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in _own(trainer):
            if trainer.is_global_zero:
                _write_step(trainer, logger)
                put(checkpoint, log_lines=logger.lines)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._lines = Checkpoint.of(checkpoint).log_lines

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What each passage of the text adds to the measures, so that intervals can be drawn from the log."""
        sums = self.module.evaluation.by_passage
        if sums is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            columns = zip(SUMS, sums.T.tolist(), strict=True)
            fields: dict[str, Any] = {name: [round(x, 3) for x in column] for name, column in columns}
            self.event(trainer, PassageSums(**fields))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.event(trainer, Ended())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.logs_errors:
            self.log_error(trainer, exception)

    def log_error(self, trainer: L.Trainer, exception: BaseException) -> None:
        if self._begun:
            self.event(trainer, Failed(error=type(exception).__name__, message=str(exception)))


def _own(trainer: L.Trainer) -> list[JSONLinesLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, JSONLinesLogger)]


def _write_step(trainer: L.Trainer, logger: JSONLinesLogger) -> None:
    """The line of the step whose batch is ending, where Lightning is going to log one."""
    step = step_to_log(trainer)
    if step is not None and logger.early_step != step:
        logger.log_early(numbers_of_step(trainer), step)


def _splits(data: TextDataModule) -> list[SplitCounts]:
    counts = data.counts(("train", "val"))
    return [SplitCounts(**asdict(c), text=data.tokens(c.split).manifest.content_sha256[:16]) for c in counts]


def run_folder(trainer: L.Trainer) -> RunFolder | None:
    """Where all of a run lies; None where nothing is kept. To be asked on all ranks, in `setup` or later."""
    if trainer.fast_dev_run:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, JSONLinesLogger):
            return RunFolder(logger.path.parent)
    return RunFolder(Path(str(trainer.log_dir))) if trainer.loggers else None  # a collective
