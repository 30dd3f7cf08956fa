"""What the callbacks of a run have in common: module, data and run by their types, and a place in the order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.training.module import LanguageModule


class Priority(IntEnum):
    """Where a callback stands among those of a run, the lowest first; see `in_order`."""

    RANDOM = 0  # before all that draws: that lies outside of the training's stream
    RESUME = 1  # puts right what a checkpoint says, and runs the last validation, before others act on a fit's end
    LOG = 2  # before all that logs events or asks for the run's folder
    CHECKS = 3  # before those that it checks
    ANY = 4
    BEST = 5  # a ModelCheckpoint: what the others have changed is in it
    LAST = 6  # last.ckpt: what ModelCheckpoint has decided is in it
    MISSED_VALIDATION = 7  # runs a validation, for which all others must be ready
    STOP = 8  # ends the fit, once the others have done their part of the step
    PAGE = 9  # draws what all others have logged


def in_order(callbacks: Sequence[L.Callback]) -> list[L.Callback]:
    """By priority; those of one priority in the order given. Lightning's own have that of BEST or ANY."""
    return sorted(callbacks, key=_priority)


def _priority(callback: L.Callback) -> Priority:
    if isinstance(callback, RunCallback):
        return callback.priority
    return Priority.BEST if isinstance(callback, Checkpoint) else Priority.ANY


@dataclass(frozen=True)
class Prompts:
    """Texts that a run is to continue, and how."""

    texts: list[str]
    options: GenerationOptions


class RunContext:
    """What the callbacks of one trainer share: each puts here in its `setup` what others need of it.

    Attributes:
        prompts: of `Samples`; None without.
    """

    def __init__(self) -> None:
        self.prompts: Prompts | None = None
        self._decides: L.Callback | None = None

    @classmethod
    def of(cls, trainer: L.Trainer) -> RunContext:
        """The trainer's; made when it is asked for first."""
        return vars(trainer).setdefault("run_context", cls())

    def decide_heads(self, callback: L.Callback) -> None:
        """Let this callback, and no other, decide which heads there are.

        Raises:
            InputError: another one does.
        """
        if self._decides not in (None, callback):
            one, other = sorted(type(decides).__name__ for decides in (callback, self._decides))
            raise InputError(f"{one} and {other} in one run: both decide which heads are there; choose one of them")
        self._decides = callback


class RunCallback(L.Callback):
    """A callback that knows its run from `setup` on.

    Attributes:
        priority: its place among the callbacks of a run of the command line. A Trainer made in Python takes the order
            that it is given.
    """

    priority: ClassVar[Priority] = Priority.ANY
    _joined: tuple[L.Trainer, L.LightningModule] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._joined = trainer, pl_module
        super().setup(trainer, pl_module, stage)

    def rehearse(self) -> Callable[[int], float] | None:
        """Asked behind the last step of `fit --dry_run`, whose model is thrown away: whatever this callback will do now
        and then may be done once, to time it.

        Returns: from a number of further steps to the seconds that it takes within them, beside what each step takes;
            None: it cannot tell.
        """
        return None

    @property
    def run(self) -> RunContext:
        return RunContext.of(self._in_run[0])

    @property
    def module(self) -> LanguageModule:
        """What is trained.

        Raises:
            InputError: it is not a LanguageModule.
        """
        module = self._in_run[1]
        if not isinstance(module, LanguageModule):
            raise InputError(f"{type(self).__name__} needs a LanguageModule, not a {type(module).__name__}")
        return module

    @property
    def data(self) -> TextDataModule:
        """What it is trained on.

        Raises:
            InputError: the fit was given loaders or another data module.
        """
        data = self._in_run[0].datamodule
        if not isinstance(data, TextDataModule):
            raise InputError(f"{type(self).__name__} needs a TextDataModule: give trainer.fit one as `datamodule`")
        return data

    @property
    def has_data(self) -> bool:
        """Whether there is a TextDataModule: a fit in Python may be given loaders."""
        return isinstance(self._in_run[0].datamodule, TextDataModule)

    @property
    def _in_run(self) -> tuple[L.Trainer, L.LightningModule]:
        assert self._joined is not None, f"{type(self).__name__}.setup was not called"
        return self._joined
