"""`fit --dry_run`: the first steps of a fit and its end, and from them what the whole will take. Nothing is kept."""

from __future__ import annotations

import io
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app import closing
from lightning_app.app import Harness, Trainer, run
from lightning_app.errors import InputError
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.tables import format_table
from lightning_app.training.callbacks.progress import clock
from lightning_app.training.callbacks.short_fit import NEVER, ShortFit
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.course import Work
from lightning_app.training.lightning_internals.callbacks import model_checkpoints
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
        cache = Path(self._options.data.cache_dir)
        if is_first_process():
            cache.mkdir(parents=True, exist_ok=True)
            cache = Path(self._scratch.enter_context(TemporaryDirectory(dir=cache, prefix=".dry_run_")))
        return cache / self._options.name / "version_0"

    def _loggers(self, folder: Path) -> list[Logger]:
        """TensorBoard's stands for whichever a run has: others may write elsewhere."""
        return [] if self._options.trainer.logger is False else [tensorboard(folder)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.fast_dev_run:
            raise InputError("trainer.fast_dev_run is a dry run of another kind: leave it out, or --dry_run")
        trainer.profiler = self._watch
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ProgressBar)]
        for callback in model_checkpoints(trainer):
            callback.dirpath = str(RunFolder(self._log_folder).checkpoints_folder)
        return trainer

    def _own_callbacks(self, folder: Path, loggers: Sequence[Logger]) -> list[L.Callback]:
        own = super()._own_callbacks(folder, loggers)
        self._log_folder = folder
        every = self._options.save_every_n_steps if Checkpoint not in self._switched_off() else None
        self._short, self._last.every_n_steps = ShortFit(self._watch, every), NEVER
        return [*own, self._short]

    def before_fit(self) -> None:
        """Nothing is resumed for good."""

    @rank_zero_only
    def after_fit(self) -> None:
        with redirect_stdout(io.StringIO()):
            sampled = closing.close_run(self.trainer, patience=PATIENCE)
        left = max(0.0, closing.SAMPLED_TOKENS / sampled.tokens_per_s - PATIENCE) if sampled else 0.0
        seconds = time.monotonic() - self._began + left
        forecast = Forecast(self.trainer, self._short, seconds, RunFolder(self._log_folder))
        title = f"dry run of {self._options.name}: {self._short.steps} steps, of which nothing is kept"
        print("\n" + format_table(forecast.rows(), title=title), flush=True)

    def after_early_end(self) -> None:
        """There is nothing to go on from."""


@dataclass(frozen=True)
class Forecast:
    """What a whole fit will take.

    Args:
        trainer: of the short one.
        short: what it has measured.
        seconds: from the command's begin to its end, with all that is done once.
        folder: where it has written.
    """

    trainer: L.Trainer
    short: ShortFit
    seconds: float
    folder: RunFolder

    def rows(self) -> list[tuple[str, str]]:
        rows = [("time to the end", self._time()), ("steps", self._steps())]
        if self.short.time_left is not None:
            fit = self.in_time - self.short.plan.start
            rows.append(("before max_time", f"{fit:,} steps in {clock(self.short.time_left)}"))
        return [*rows, ("epochs", self._epochs()), ("tokens", self._tokens()), *self._sizes()]

    # Steps

    @cached_property
    def in_time(self) -> int:
        """The step with which max_time ends the fit."""
        assert self.short.time_left is not None
        return self.short.step_at(self.short.time_left)

    @cached_property
    def end(self) -> tuple[int, str]:
        """The last step, and the option that says so."""
        limits = dict(self.short.limits)
        if self.short.time_left is not None:
            limits["max_time"] = self.in_time
        name = min(limits, key=lambda name: limits[name])
        return limits[name], name

    @cached_property
    def work(self) -> Work:
        return self.short.plan.until(self.end[0])

    def _steps(self) -> str:
        (end, name), start = self.end, self.short.plan.start
        before = f", after {start:,} that are done" if start else ""
        stops = any(isinstance(callback, EarlyStopping) for callback in self.trainer.callbacks)
        early = "; EarlyStopping may end it before" if stops else ""
        return f"{end - start:,}{before} ({name}{early})"

    def _epochs(self) -> str:
        course, start = self.short.plan.course, self.short.plan.start
        done = f", from {course.batches_at(start) / course.batches:.2f} on" if start else ""
        return f"{self.work.batches / course.batches:.2f} of {course.batches:,} batches{done}"

    def _tokens(self) -> str:
        course, start, end = self.short.plan.course, self.short.plan.start, self.end[0]
        first, last = course.batches_at(start), course.batches_at(end)
        learned = self._rows_at(first + self.short.batches) - self._rows_at(first)
        width = self.short.tokens / learned
        exact = width == self.trainer.datamodule.block_size
        step = width * self._rows_at(course.accumulated(0))
        total = width * (self._rows_at(last) - self._rows_at(first))
        about = "" if exact else "about "
        return f"{about}{round(step):,} a step, {about}{round(total):,} in all"

    def _rows_at(self, batches: int) -> int:
        """Windows in the first so many batches, over all epochs and ranks."""
        data, loader, of_epoch = self.trainer.datamodule, self.trainer.train_dataloader, self.short.plan.course.batches
        if data.streamed("train"):
            return batches * data.dataloader.batch_size * self.trainer.world_size
        epochs, rest = divmod(batches, of_epoch)
        return epochs * loader.rows(of_epoch) + loader.rows(rest)

    # Time and sizes

    def _time(self) -> str:
        costs, work = self.short.costs(), self.work
        seconds = self.seconds + self.short.seconds_beyond(self.end[0])
        once = seconds - work.seconds(costs)
        parts = [
            f"{work.batches:,} batches of {_duration(costs.batch)}",
            f"{work.validations:,} validations of {_duration(costs.validation)}",
            f"{work.checkpoints:,} checkpoints of {_duration(costs.checkpoint)}",
            f"start and end {_duration(once)}",
        ]
        return f"{clock(seconds)} ({seconds:.1f} s): {', '.join(parts)}"

    def _sizes(self) -> list[tuple[str, str]]:
        device = self.trainer.strategy.root_device
        where = "of the GPU" if device.type == "cuda" else "of this process"
        kept, one, logs, caches = self._disk()
        parts = f"{kept} checkpoints of {_size(one)}, logs and pages {_size(logs)}, token caches {_size(caches)}"
        return [
            ("peak memory", f"{_size(peak_memory(device))} {where}"),
            ("disk", f"{_size(kept * one + logs + caches)}: {parts}"),
        ]

    def _disk(self) -> tuple[int, int, int, int]:
        """Number of checkpoints that will lie there, and bytes of one, of logs and pages, of the token caches."""
        checkpoints = self.folder.checkpoints_folder
        files = [path.stat().st_size for path in checkpoints.glob("*.ckpt")]
        beside = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()) - sum(files)
        return self._kept(), max(files, default=0) + beside, self._logs(), self._caches()

    def _kept(self) -> int:
        """Checkpoints at the end, with the one that each has replaced last."""
        work, writer = self.work, self.trainer.strategy.checkpoint_io
        if not work.checkpoints:
            return 0
        generations = 1 + (isinstance(writer, AtomicCheckpointIO) and writer.keep_previous)
        best = [c for c in model_checkpoints(self.trainer) if c.monitor is not None]
        kept = [generations if c.save_top_k == 1 else c.save_top_k % (work.validations + 1) for c in best]
        return min(generations, work.checkpoints) + sum(min(n, work.validations) for n in kept)

    def _logs(self) -> int:
        """Logs grow with their lines, all else in the folder is written once."""
        logs = [*self.folder.path.glob("*.jsonl"), *self.folder.path.glob("events.out.tfevents*")]
        size = sum(path.stat().st_size for path in logs)
        lines = max(1, len(self.folder.records()))
        work, every = self.work, self.trainer.log_every_n_steps
        more = (self.end[0] - self.short.plan.start) // every if every else 0
        rest = [path for path in self.folder.path.rglob("*") if path.is_file() and path not in logs]
        others = sum(path.stat().st_size for path in rest if self.folder.checkpoints_folder not in path.parents)
        return others + size * (lines + more + 2 * (work.validations - 1)) // lines

    def _caches(self) -> int:
        data = self.trainer.datamodule
        names = [name for name in ("train", "val") if data.splits.origin(name) and not data.streamed(name)]
        folders = {data.tokens(name).folder for name in names}
        return sum(path.stat().st_size for folder in folders for path in folder.iterdir())


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device, or on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
