"""On a resume the config and the command line hold, or what has no effect is named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_app.data.accumulation import accumulation_schedule
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.mixture import Mixture
from lightning_app.errors import InputError
from lightning_app.models.registry import Description, describe
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.checkpoint import Checkpoint, put
from lightning_app.training.lightning_internals import callbacks as lightning_callbacks
from lightning_app.training.module import LanguageModule
from lightning_app.training.optimizer_parts import optimizer_class
from lightning_app.training.optimizers import change_group, group_options, scheduler_options
from lightning_app.training.schedules import KEY
from lightning_app.yaml_file import leaves

# Options of an optimizer that its state is laid out for: the checkpoint's hold (and so does a momentum of 0).
KEPT = ("amsgrad", "centered", "fused", "foreach", "capturable", "differentiable")
STEPS = "max_steps"
OF_TRAINING = ("drop", "noise")  # in the names of a module's options that a checkpoint's weights do not show


class ResumeOptions(RunCallback):
    """Puts the options in force into each checkpoint, and applies on a resume those that have changed since.

    Lightning takes what a checkpoint holds: the optimizer's learning rate, betas and weight decay, a scheduler's T_max,
    EarlyStopping's patience. Here the config's number holds where it is another one than that of the run that wrote the
    checkpoint; Adam's moments and the place in the schedule stay. So a lower `lr` scales the rate from there on.

    - Another class of optimizer is refused: its state would not fit. Options that its state is laid out for (`KEPT`)
      stay as they were, and are named.
    - Another text, order, shift, shuffling, accumulation, dropout or noise holds from there, and is named.

    A checkpoint of before has no such record: then the numbers in its states count.
    """

    priority = Priority.RESUME

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None  # what was in force in the run that wrote the checkpoint
        self._resumes = False
        self._given: dict[str, Any] = {}  # by this run's config
        self._callbacks: list[tuple[L.Callback, dict[str, Any]]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._saved, self._resumes = None, False
        if stage == "fit":
            self._callbacks = lightning_callbacks.options_of_all(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        saved = Checkpoint.of(checkpoint)
        self._saved, self._resumes = saved.options, True
        for name, theirs, ours in differing(_training_options(saved.model), _training_options_of(pl_module)):
            _name(f"{name} is {ours}, the checkpoint's run had {theirs}")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The optimizer is made, and not restored yet."""
        self._given = in_force(trainer)
        if self._saved:
            self._check(self._saved)

    def _check(self, saved: dict[str, Any]) -> None:
        for theirs, ours in zip(saved["optimizers"], self._given["optimizers"], strict=False):
            if theirs["class"] != ours["class"]:
                raise InputError(
                    f"the checkpoint's optimizer is {theirs['class']}, this one {ours['class']}: their states do not "
                    "fit; give the checkpoint's, or start with its weights alone (--init_from)"
                )
        for name, theirs, ours in differing(saved["run"], self._given["run"]):
            _name(f"{name} is {ours}, the checkpoint's run had {theirs}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All is restored."""
        if not self._resumes:
            return
        before = self._saved or in_force(trainer)
        for optimizer, theirs, ours in zip(
            trainer.optimizers, before["optimizers"], self._given["optimizers"], strict=False
        ):
            for group, old, new in zip(optimizer.param_groups, theirs["groups"], ours["groups"], strict=False):
                self._change_group(trainer, group, old, new)
        for config, old, new in zip(
            trainer.lr_scheduler_configs, before["schedulers"], self._given["schedulers"], strict=False
        ):
            for name, theirs, ours in differing(old, new):
                setattr(config.scheduler, name, ours)
                _say(f"{type(config.scheduler).__name__}'s {name}", theirs, ours)
        for callback, options in self._callbacks:
            for name, theirs, ours in differing(lightning_callbacks.options(callback), options):
                lightning_callbacks.set_option(callback, name, ours)
                _say(f"{type(callback).__name__}'s {name}", theirs, ours)

    def _change_group(
        self, trainer: L.Trainer, group: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
    ) -> None:
        if not self._saved:
            old = {**old, "lr": old["lr"] / old.get("lr_factor", 1.0)}
        for name, theirs, ours in differing(old, new):
            if name in KEPT or (name == "momentum" and not theirs):
                new[name] = theirs
                rank_zero_warn(
                    f"the optimizer's {name} is {ours}, which has no effect on a resume: the checkpoint's {theirs} "
                    "holds"
                )
                continue
            change_group(group, name, ours, before=theirs)
            _say(f"the optimizer's {name}", theirs, ours)
            for config in trainer.lr_scheduler_configs if name == "lr" else ():
                _rebase(config.scheduler)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._given:
            put(checkpoint, options=self._given)


def in_force(trainer: L.Trainer) -> dict[str, Any]:
    """What decides how this run trains, in plain types."""
    run: dict[str, Any] = _data_options(trainer.datamodule) if isinstance(trainer.datamodule, TextDataModule) else {}
    if accumulation_schedule(trainer) is None:
        run["trainer.accumulate_grad_batches"] = trainer.accumulate_grad_batches
    if isinstance(trainer.lightning_module, LanguageModule):
        run |= {f"{KEY}.{name}": ramp for name, ramp in asdict(trainer.lightning_module.schedules).items()}
    optimizers = [{"class": optimizer_class(x), "groups": group_options(x)} for x in trainer.optimizers]
    schedulers = [scheduler_options(config.scheduler) for config in trainer.lr_scheduler_configs]
    return {"run": run, "optimizers": optimizers, "schedulers": schedulers, STEPS: trainer.max_steps}


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name and both values of what both have and is not the same."""
    return [(name, x, ours[name]) for name, x in theirs.items() if name in ours and ours[name] != x]


def _data_options(data: TextDataModule) -> dict[str, Any]:
    text = data.splits.source("train").path if data.streamed("train") else _digest(data)
    options = {"order": data.order, "shift": data.shift, "respect_documents": data.respect_documents}
    return {f"data.{name}": value for name, value in options.items()} | {
        "data.dataloader.shuffle": data.dataloader.shuffle,
        "the text (its digest)": text,
        **_mixed(data),
    }


def _mixed(data: TextDataModule) -> dict[str, Any]:
    dataset = None if data.streamed("train") else data.dataset("train")
    return {"data.train (samples of each source)": dataset.counts} if isinstance(dataset, Mixture) else {}


def _digest(data: TextDataModule) -> str:
    return data.tokens("train").manifest.content_sha256[:16]


def _training_options_of(module: L.LightningModule) -> dict[str, Any]:
    return _training_options(describe(module) if isinstance(module, LanguageModule) else None)


def _training_options(model: Description | None) -> dict[str, Any]:
    """Dropout and noise in the options of a described module."""
    found = leaves(model or {}, "model.")
    return {key: value for key, value in found if any(word in key.rsplit(".", 1)[-1] for word in OF_TRAINING)}


def _rebase(scheduler: Any) -> None:
    """Let a scheduler start from the learning rates that its optimizer's groups start from."""
    groups = scheduler.optimizer.param_groups
    if "base_lrs" in vars(scheduler):
        scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in groups]
    scheduler._last_lr = [group["lr"] for group in groups]


def _say(what: str, theirs: Any, ours: Any) -> None:
    rank_zero_info(f"{what} is {ours} from here, in the checkpoint's run it was {theirs}")


def _name(words: str) -> None:
    rank_zero_warn(f"{words}: not the same run from here")
