"""EarlyStopping and ModelCheckpoint watch a number by its name: when they look, and whether there is such a number."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from lightning_app.errors import InputError
from lightning_app.reports.record import Numbers, Record
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.callbacks.run_log import run_folder
from lightning_app.training.lightning_internals.callbacks import decide_after_validation, watchers

ALWAYS = ("val/loss", "val/ce")  # logged by every validation


class Monitors(RunCallback):
    """Refuses a monitor that is not among the numbers of a validation.

    A name that begins with "val" is looked for in the validation of two batches that comes before training (of one
    batch, where `num_sanity_val_steps` is 0), any other in the first whole validation, by when the numbers of training
    are known too. Lightning validates nothing before a resume: there it is looked for in the run's log.

    What watches a number of the validation decides when that has ended: at an epoch's end a run that goes on from
    between the two, or ends within an epoch, would decide nothing.

    Raises:
        InputError: with the callback, the name that it watches, and those that there are.
    """

    priority = Priority.CHECKS

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for callback, name in watchers(trainer):
            if name.startswith("val/"):
                decide_after_validation(callback)
            if name.startswith("val") and name not in ALWAYS:
                trainer.num_sanity_val_steps = trainer.num_sanity_val_steps or 1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback, name in watchers(trainer):
            if isinstance(callback, EarlyStopping) and name.startswith("val/") and not trainer.enable_validation:
                raise InputError(
                    f"EarlyStopping's monitor is {name}, but there is no validation: set trainer.limit_val_batches "
                    "above 0, or leave EarlyStopping out"
                )
        folder = run_folder(trainer) if trainer.ckpt_path else None
        if folder and (known := _validated(folder.records())):
            _check(trainer, known, all_known=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        _check(trainer, list(trainer.callback_metrics), all_known=not trainer.sanity_checking)


def _validated(records: Sequence[Record]) -> list[str]:
    """Names of what validations have logged."""
    numbers = {name for record in records if isinstance(record, Numbers) for name in record.values}
    return [name for name in numbers if name.startswith("val/")]


def _check(trainer: L.Trainer, known: Sequence[str], *, all_known: bool) -> None:
    """`all_known`: those of training are among them."""
    for callback, name in watchers(trainer):
        if name not in known and (name.startswith("val") or all_known):
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"{type(callback).__name__}'s monitor is {name}, which is not logged; "
                + (f"perhaps {near[0]}? " if near else "")
                + f"There are: {', '.join(sorted(known))}"
            )
