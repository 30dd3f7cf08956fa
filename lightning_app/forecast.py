"""What a whole fit will take, from its first steps: time, steps, tokens, memory and disk, as rows of a table."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from functools import cached_property

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_app.duration import clock
from lightning_app.plugins import here
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.callbacks.short_fit import ShortFit
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.course import Costs, Work
from lightning_app.training.lightning_internals.callbacks import model_checkpoints, of_kind, steps_between


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
        return [*rows, ("epochs", self._epochs()), ("tokens", self._tokens()), *self._sizes(), *self._of_ideas()]

    def _of_ideas(self) -> list[tuple[str, str]]:
        """A memory fills, heads are pruned, texts are not novel for ever: later steps are other ones."""
        parts = [*of_kind(self.trainer, L.Callback), *self.trainer.lightning_module.extensions]
        folders = tuple(f"lightning_app.{idea.name}." for idea in here())
        parts = [part for part in parts if part not in self.short.rehearsed]
        found = [type(part).__name__ for part in parts if type(part).__module__.startswith(folders)]
        return [("not foretold", f"how the work of {', '.join(found)} changes in training")] if found else []

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
        stops = bool(of_kind(self.trainer, EarlyStopping))
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
        of_ideas = self.short.seconds_of_ideas(self.end[0])
        once = seconds - work.seconds(costs) - of_ideas
        parts = [
            repeated(work, costs),
            *(f"{type(callback).__name__} {_duration(of_ideas)}" for callback in self.short.rehearsed),
            f"start and end {_duration(once)}",
        ]
        return f"{clock(seconds)} ({seconds:.1f} s): {', '.join(parts)}"

    def _sizes(self) -> list[tuple[str, str]]:
        device = self.trainer.strategy.root_device
        where = "of the GPU" if device.type == "cuda" else "of this process"
        peak = peak_memory(device)
        return [
            ("peak memory", "not measured on Windows" if peak is None else f"{_size(peak)} {where}"),
            ("disk", self._disk()),
        ]

    def _disk(self) -> str:
        checkpoints = self.folder.checkpoints_folder
        files = [path.stat().st_size for path in checkpoints.glob("*.ckpt")]
        beside = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()) - sum(files)
        kept, one, logs, caches = self._kept(), max(files, default=0) + beside, self._logs(), self._caches()
        saved = f"{kept} checkpoints of {_size(one)} (one more while it saves), " if kept else ""
        parts = f"{saved}logs and pages {_size(logs)}, token caches {_size(caches)}"
        return f"{_size(kept * one + logs + caches)}: {parts}"

    def _kept(self) -> int:
        """Checkpoints at the end, with the one that each has replaced last."""
        last = min(1 + self._keeps_previous, self.work.checkpoints)
        return last + sum(self._kept_of(checkpoint) for checkpoint in model_checkpoints(self.trainer))

    def _kept_of(self, checkpoint: ModelCheckpoint) -> int:
        every = steps_between(checkpoint)
        written = (self.end[0] - self.short.plan.start) // every if every else self.work.validations
        most = written if checkpoint.save_top_k == -1 else checkpoint.save_top_k
        return min(most + (self._keeps_previous and not every and most == 1), written)

    @property
    def _keeps_previous(self) -> bool:
        writer = self.trainer.strategy.checkpoint_io
        return isinstance(writer, AtomicCheckpointIO) and writer.keep_previous

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


def repeated(work: Work, costs: Costs) -> str:
    """What is done again and again, and how long each takes."""
    return (
        f"{work.batches:,} batches of {_duration(costs.batch)}, "
        f"{work.validations:,} validations of {_duration(costs.validation)}, "
        f"{work.checkpoints:,} checkpoints of {_duration(costs.checkpoint)}"
    )


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the device, or on a CPU of this process; None where the system does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
