"""A resumed run is the one that never stopped: random numbers, Lightning's counters, a validation that it missed."""

import random
import warnings
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from lightning_app.data.accumulation import accumulated
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.checkpoint_keys import CALLBACKS
from lightning_app.training.distributed import rank, several_ranks, world_size
from lightning_app.training.lightning_internals import counters, fit_loop
from lightning_app.training.lightning_internals.fit_loop import batches_learned

# Random numbers


def random_states() -> dict[str, Any]:
    """The state of every global generator of this process, in plain types and tensors (loads with weights_only).

    CUDA generators are left out before CUDA is used: asking would take hundreds of MB of a device for nothing.
    """
    name, keys, position, has_gauss, gauss = cast("tuple[str, Any, int, int, float]", np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`; CUDA devices that are not here any more are left out."""
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])


def _gathered(states: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks. Lightning asks every rank for its state, and writes what rank 0 answers."""
    if not several_ranks():
        return [states]
    ranks: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(ranks, states)
    return ranks


class RandomState(RunCallback):
    """Gives training its own stream of random numbers, and puts the stream's position in the checkpoint.

    The generators are remembered when a training batch ends and set back when the next one begins. So nothing in
    between (validation, samples, the making of a loader) disturbs the stream, and it does not matter whether a
    checkpoint is written before a validation or after it, though a resume does not run that validation again. What
    draws in between meets the numbers of the next batch; where that matters it takes a generator of its own.

    Every rank has its own stream; all are gathered into the one checkpoint. A rank that the checkpoint does not
    know (more ranks than before) keeps the stream that it was seeded with, and a warning says so.

    In a Trainer made in Python put it first: callbacks before it draw from outside the stream.
    """

    priority = Priority.RANDOM

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None  # of this rank between training batches

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._states = None  # an earlier fit's; Lightning loads a checkpoint's after this hook

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._states is None:
            self._states = random_states()  # an exception in the first batch saves what it began with
        else:
            set_random_states(self._states)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._states = random_states()

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": _gathered(self._states or random_states())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        own = rank()
        if own < len(ranks):
            self._states = ranks[own]
        else:
            warnings.warn(
                f"rank {own} resumes without its random state: the checkpoint holds {len(ranks)} ranks", stacklevel=2
            )


# Counters and validations


class ExactResume(RunCallback):
    """Makes every checkpoint one that Lightning (2.6) resumes exactly; needs a `ResumableLoader`.

    Lightning resumes exactly from a checkpoint written at a batch's end. Not so:

    - one written when the epoch is closed (in `on_train_epoch_end`, after `fit`, or because `max_steps`, `max_time`
      or a signal ended training in mid-epoch): with `max_steps` it counts one epoch too many, and loses batches. It
      is loaded as if it had been written at the end of its last batch.
    - one written while a batch is in work (`ModelCheckpoint(save_on_exception=True)`): the batch was fetched and not
      learned, and would be lost. It is saved as if the batch had not been fetched.
    - one written before, in or after a validation: it is saved as if written at the end of the batch before.
    - a second resume after one from an epoch's last batch: the first leaves epochs uncounted. They are counted at
      the first batch.

    Lightning never runs a validation again that was due at a checkpoint's step, whether or not it was finished. Here
    a checkpoint knows the batch of the last finished one. `MissedValidation` runs one that was due, and this callback
    one at the end of a fit that has none of its last step.

    What no checkpoint holds is the gradients inside an accumulation window: ModelCheckpoint does not save there by
    steps, but a validation may; let `val_check_interval` be a multiple of `accumulate_grad_batches`.

    In a Trainer made in Python put it before all callbacks that act on a fit's end.
    """

    priority = Priority.RESUME

    def __init__(self) -> None:
        self._resumed = False
        self.validated = 0  # batches, over all epochs, before the last finished validation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._resumed, self.validated = False, 0
        fit_loop.begin_finished_fit(trainer, lambda: self.missed_validation(trainer))

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validated = state_dict["validated"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if (loop := counters.fit_loop_of(checkpoint)) is None:
            return
        began_next = counters.unfetch(loop)
        counters.end_at_batch(loop, began_next=began_next, accumulate=trainer.accumulate_grad_batches)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if (loop := counters.fit_loop_of(checkpoint)) is None:
            return
        counters.reopen_epoch(loop, accumulate=accumulated(trainer, counters.epoch_of(loop)))
        if self.state_key not in checkpoint[CALLBACKS]:  # older: nobody knows
            self.validated = counters.batches_learned_in(loop)
        self._resumed = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._resumed:
            fit_loop.count_open_epoch(trainer)
            self._resumed = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.validated = batches_learned(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A fit ends with a validation of its last step, so that there is always a best one."""
        if self.missed_validation(trainer):
            with fit_loop.at_last_batch(trainer):
                fit_loop.validate(trainer)

    def missed_validation(self, trainer: L.Trainer) -> bool:
        """Whether there can be a validation, and the last batch has had none."""
        return bool(trainer.enable_validation) and batches_learned(trainer) > self.validated


class MissedValidation(RunCallback):
    """Before the first batch of a resumed run: the validation that was due at its checkpoint's step and did not end.

    In a Trainer made in Python put it behind all callbacks that a validation needs, so that they are ready.

    Args:
        exact: knows which validation was the last.
    """

    priority = Priority.MISSED_VALIDATION

    def __init__(self, exact: ExactResume):
        self._exact = exact

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # in an epoch that has not begun the batch before is another epoch's, and past
        if self._exact.missed_validation(trainer) and fit_loop.in_epoch(trainer):
            with fit_loop.at_last_batch(trainer):
                if fit_loop.validation_is_due(trainer):
                    fit_loop.validate(trainer)
