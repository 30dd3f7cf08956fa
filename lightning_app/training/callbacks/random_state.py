"""Resumes draw the same random numbers as the run that was never interrupted."""

import random
import warnings
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.distributed import rank, several_ranks, world_size


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
    """Those of all ranks. Lightning asks every rank for its state, and writes what rank 0 answers."""
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
