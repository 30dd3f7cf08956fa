"""The first steps of a fit and its end, of which nothing is kept: `--dry_run` and `fit_in` measure them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger

from lightning_app.app import Harness, Trainer
from lightning_app.errors import InputError
from lightning_app.io import temporary, writing_into
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.callbacks.short_fit import NEVER, ShortFit
from lightning_app.training.lightning_internals.callbacks import move_checkpoints
from lightning_app.training.lightning_internals.stopwatch import Stopwatch
from lightning_app.training.loggers import tensorboard
from lightning_app.training.run_versions import is_first_process


class ShortRun(Harness):
    """A fit of a few steps that writes into a temporary folder instead of a run's.

    The folder lies among the token caches: on their disk there is room, and writing takes as long as it will.

    Args:
        args: the words of the fit.
        scratch: its end removes what was written.
    """

    warm_up: ClassVar[int]  # steps that are not timed
    timed: ClassVar[int]
    mean: ClassVar[bool]  # see `ShortFit`
    least = 0.0  # see `ShortFit`

    def __init__(self, args: Sequence[str], *, scratch: ExitStack):
        self._scratch, self._watch = scratch, Stopwatch()
        super().__init__(args)

    def _folder(self) -> Path:
        self._cache = Path(self._options.data.cache_dir)
        place = self._scratch.enter_context(temporary(self._cache / "short_run"))
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
        self._short = ShortFit(
            self._watch, every, warm_up=self.warm_up, timed=self.timed, mean=self.mean, least=self.least
        )
        self._last.every_n_steps = NEVER
        return [*own, self._short]

    def after_early_end(self) -> None:
        """There is nothing to go on from."""


@contextmanager
def quiet(*, hide_warnings: bool = False) -> Iterator[None]:
    """What callbacks print at the end of a fit is not so of a short one, and no advice of Lightning's is.

    Args:
        hide_warnings: the whole fit, which follows, will give them.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        if hide_warnings:
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
