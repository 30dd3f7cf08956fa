"""The counters as Lightning writes them, and as they are moved; tests/test_resume.py resumes from the result."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_app.training.lightning_internals.counters import (
    batches_learned_in,
    end_at_batch,
    epoch_of,
    fit_loop_of,
    reopen_epoch,
    unfetch,
)
from tests.training.lightning_internals.small import Small, trainer

MOVED = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict")


class Saves(L.Callback):
    """Checkpoints of all moments, by name; what is behind the callback in the loop is in none of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loops: dict[str, dict[str, Any]] = {}

    def save(self, trainer: L.Trainer, moment: str) -> None:
        path = self.folder / f"{moment}.ckpt"
        trainer.save_checkpoint(path)
        loop = fit_loop_of(torch.load(path, weights_only=True))
        assert loop is not None
        self.loops[moment] = loop

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.save(trainer, f"start of {trainer.fit_loop.total_batch_idx}")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.save(trainer, f"end of {trainer.fit_loop.total_batch_idx}")

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.save(trainer, f"validation behind {trainer.fit_loop.total_batch_idx}")

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.save(trainer, f"epoch behind {trainer.fit_loop.total_batch_idx}")

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.save(trainer, "end")


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of a real fit: two epochs of three batches, one validation an epoch, behind the second."""
    saves = Saves(tmp_path_factory.mktemp("loops"))
    trainer(saves, max_steps=6, val_check_interval=2).fit(Small())
    return saves.loops


def moved(loop: dict[str, Any]) -> dict[str, Any]:
    """All that is changed here of a loop's state."""
    return {name: loop[name] for name in MOVED} | {"loader": loop["state_dict"]["combined_loader"]}


def test_what_lightning_counts(loops: dict[str, dict[str, Any]]):
    assert [batches_learned_in(loops[f"end of {n}"]) for n in range(6)] == [1, 2, 3, 4, 5, 6]
    assert [batches_learned_in(loops[f"start of {n}"]) for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [epoch_of(loops[name]) for name in ("end of 2", "epoch behind 2", "epoch behind 5")] == [0, 0, 1]
    assert loops["start of 4"]["state_dict"]["combined_loader"][0]["batches"] == 2  # it is in work
    assert loops["end of 4"]["epoch_loop.batch_progress"]["current"] == counts(2, 2, 1)
    assert loops["epoch behind 2"]["epoch_progress"]["total"] == counts(1, 1, 0)
    assert fit_loop_of({"state_dict": {}}) is None


@pytest.mark.parametrize(("closed", "last"), [("epoch behind 2", 2), ("epoch behind 5", 5), ("end", 5)])
def test_a_real_epoch_is_reopened(loops: dict[str, dict[str, Any]], closed: str, last: int):
    """What Lightning writes when an epoch is closed, as it writes it at the end of the epoch's last batch."""
    loop = deepcopy(loops[closed])
    assert moved(loop) != moved(loops[f"end of {last}"])
    reopen_epoch(loop, accumulate=1)
    assert moved(loop) == moved(loops[f"end of {last}"])


@pytest.mark.parametrize(
    ("moment", "before"), [("start of 2", 1), ("start of 5", 4), ("validation behind 1", 1), ("validation behind 4", 4)]
)
def test_a_real_batch_in_work_or_validated_is_ended(loops: dict[str, dict[str, Any]], moment: str, before: int):
    """What Lightning writes behind a batch, as it writes it at that batch's end."""
    loop = deepcopy(loops[moment])
    assert moved(loop) != moved(loops[f"end of {before}"])
    end_at_batch(loop, began_next=unfetch(loop), accumulate=1)
    assert moved(loop) == moved(loops[f"end of {before}"])


# The counters alone


def counts(ready: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "started": ready, "processed": processed, "completed": completed}


def fit_loop(epoch: dict[str, int], batch: dict[str, int], *, last: bool, stepped: int = 5) -> dict[str, Any]:
    return {
        "state_dict": {"combined_loader": [{"epoch": 0, "batches": batch["ready"]}, {"of": "another loader"}]},
        "epoch_progress": {"total": dict(epoch), "current": dict(epoch)},
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped},
        "epoch_loop.batch_progress": {"total": dict(batch), "current": dict(batch), "is_last_batch": last},
    }


def test_an_open_epoch_stays():
    loop = fit_loop(counts(1, 0, 0), counts(5, 5, 4), last=True)
    reopen_epoch(loop, accumulate=1)
    assert loop == fit_loop(counts(1, 0, 0), counts(5, 5, 4), last=True)


@pytest.mark.parametrize("completed", [1, 2])  # in on_train_epoch_end, and after fit
@pytest.mark.parametrize("last", [True, False])
def test_a_closed_epoch_becomes_that_of_its_last_batch(completed, last):
    loop = fit_loop(counts(2, 2, completed), counts(5, 5, 5), last=last)
    reopen_epoch(loop, accumulate=1)
    assert loop == fit_loop(counts(2, 1, 1), counts(5, 5, 4), last=last, stepped=4)


def test_no_step_is_taken_back_that_was_not_counted():
    loop = fit_loop(counts(1, 1, 1), counts(3, 3, 3), last=False)
    reopen_epoch(loop, accumulate=2)
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 5


def test_before_the_first_epoch_nothing_is_reopened():
    loop = fit_loop(counts(0, 0, 0), counts(0, 0, 0), last=False)
    reopen_epoch(loop, accumulate=1)
    assert loop == fit_loop(counts(0, 0, 0), counts(0, 0, 0), last=False)


def test_a_batch_in_work_was_not_fetched():
    loop = fit_loop(counts(1, 0, 0), counts(5, 4, 4), last=True)
    unfetch(loop)
    assert loop["epoch_loop.batch_progress"]["current"] == counts(4, 4, 4)
    assert loop["epoch_loop.batch_progress"]["total"] == counts(4, 4, 4)
    assert loop["epoch_loop.batch_progress"]["is_last_batch"] is False
    assert loop["state_dict"]["combined_loader"] == [{"epoch": 0, "batches": 4}, {"of": "another loader"}]


def test_a_finished_batch_stays():
    loop = fit_loop(counts(1, 0, 0), counts(5, 5, 4), last=True)
    unfetch(loop)
    assert loop == fit_loop(counts(1, 0, 0), counts(5, 5, 4), last=True)


@pytest.mark.parametrize(("began_next", "stepped"), [(False, 5), (True, 4)])  # about a validation, in the next batch
def test_behind_a_batch_is_at_its_end(began_next, stepped):
    loop = fit_loop(counts(1, 0, 0), counts(5, 5, 5), last=True)
    end_at_batch(loop, began_next=began_next, accumulate=1)
    assert loop == fit_loop(counts(1, 0, 0), counts(5, 5, 4), last=True, stepped=stepped)


@pytest.mark.parametrize(
    ("epoch", "batch"),
    [(counts(1, 1, 0), counts(5, 5, 5)), (counts(1, 0, 0), counts(0, 0, 0)), (counts(1, 0, 0), counts(5, 5, 4))],
    ids=["the epoch is closed", "it has just begun", "at a batch's end"],
)
def test_else_the_counters_stay(epoch, batch):
    loop = fit_loop(epoch, batch, last=False)
    end_at_batch(loop, began_next=False, accumulate=1)
    assert loop == fit_loop(epoch, batch, last=False)
