"""`fit --dry_run`: the first steps of a fit and its end, and from them what the whole will take. Nothing is kept."""

from __future__ import annotations

import io
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app import closing
from lightning_app.app import Harness, Trainer, run
from lightning_app.errors import InputError
from lightning_app.forecast import Forecast
from lightning_app.io import temporary, writing_into
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.tables import format_table
from lightning_app.training.callbacks.short_fit import NEVER, ShortFit
from lightning_app.training.lightning_internals.callbacks import move_checkpoints
from lightning_app.training.lightning_internals.stopwatch import Stopwatch
from lightning_app.training.loggers import tensorboard
from lightning_app.training.run_versions import is_first_process

PATIENCE = 10.0  # seconds of sampling at the end, which stand for all


def dry_run(argv: Sequence[str], *, began: float) -> None:
    """Carry out `fit --dry_run`.

    Args:
        argv: the words of the fit.
        began: when the command did, by `time.monotonic`.
    """
    with ExitStack() as scratch:
        run(argv, harness=partial(DryRun, scratch=scratch, began=began))


class DryRun(Harness):
    """A fit of seven steps that writes into a temporary folder instead of a run's, and then says what it has measured.

    The folder lies among the token caches: on their disk there is room, and writing takes as long as it will.
    """

    def __init__(self, args: Sequence[str], *, scratch: ExitStack, began: float):
        self._scratch, self._began = scratch, began
        self._watch = Stopwatch()
        super().__init__(args)

    def _folder(self) -> Path:
        self._cache = Path(self._options.data.cache_dir)
        place = self._scratch.enter_context(temporary(self._cache / "dry_run"))
        if is_first_process():
            with writing_into(self._cache, needed=0):
                place.mkdir(parents=True, exist_ok=True)
            self._cached = set(self._cache.iterdir())
        return place / self._options.name / "version_0"

    def _loggers(self, folder: Path) -> list[Logger]:
        """TensorBoard's stands for whichever a run has: others may write elsewhere."""
        return [] if self._options.trainer.logger is False else [tensorboard(folder)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.fast_dev_run:
            raise InputError("trainer.fast_dev_run is a dry run of another kind: leave it out, or --dry_run")
        trainer.profiler = self._watch
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ProgressBar)]
        move_checkpoints(trainer, RunFolder(self._log_folder).checkpoints_folder)
        return trainer

    def _own_callbacks(self, folder: Path, loggers: Sequence[Logger]) -> list[L.Callback]:
        own = super()._own_callbacks(folder, loggers)
        self._log_folder = folder
        every = self._options.save_every_n_steps if Checkpoint not in self._switched_off() else None
        self._short, self._last.every_n_steps = ShortFit(self._watch, every), NEVER
        return [*own, self._short]

    def before_fit(self) -> None:
        """What callbacks print at the end of a fit, and warn of, is not so of this one."""
        self._out = sys.stdout
        self._scratch.enter_context(redirect_stdout(io.StringIO()))
        self._scratch.enter_context(warnings.catch_warnings())
        lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        self._scratch.callback(lightning.setLevel, lightning.level)
        lightning.setLevel(logging.WARNING)

    @rank_zero_only
    def after_fit(self) -> None:
        steps = self._short.steps
        rows = self._forecast() if steps else [("steps", "0: the checkpoint is the end of its fit")]
        title = f"dry run of {self._options.name}: {steps} steps, nothing is kept"
        print(format_table(rows, title=title), file=self._out, flush=True)

    def _forecast(self) -> list[tuple[str, str]]:
        sampled = closing.close_run(self.trainer, patience=PATIENCE)
        left = max(0.0, sampled.seconds - PATIENCE) if sampled else 0.0
        seconds = time.monotonic() - self._began + left - self._spared()
        return Forecast(self.trainer, self._short, seconds, RunFolder(self._log_folder)).rows()

    def _spared(self) -> float:
        """Seconds that the fit will not need, as token caches were written now."""
        if set(self._cache.iterdir()) == self._cached:
            return 0.0
        first, start = self._watch.hooks(".prepare_data", self._began), time.monotonic()
        logging.disable(logging.WARNING)  # all was said when it was done first
        try:
            self.datamodule.prepare_data()
        finally:
            logging.disable(logging.NOTSET)
        return max(0.0, sum(span.seconds for span in first) - (time.monotonic() - start))

    def after_early_end(self) -> None:
        """There is nothing to go on from."""
