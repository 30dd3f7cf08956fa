from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_app.training.lightning_internals import fit_loop
from tests.training.lightning_internals.small import BATCHES, Lines, Small, trainer


class Moments(L.Callback):
    """What is asked at the end of each batch, and the batches behind which Lightning validates."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool, bool]] = []
        self.due: list[int] = []
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.asked.append((fit_loop.batches_learned(trainer), fit_loop.in_epoch(trainer), fit_loop.may_stop(trainer)))
        if fit_loop.validation_is_due(trainer):
            self.due.append(trainer.fit_loop.total_batch_idx)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.validated.append(trainer.fit_loop.total_batch_idx)


def test_what_is_counted_and_when_it_may_stop():
    moments = Moments()
    trainer(moments, min_steps=4).fit(Small())
    assert moments.asked == [(n, True, n >= 4) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"val_check_interval": 2}, [1, 4]),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, [1, 3, 5]),
        ({"check_val_every_n_epoch": 2}, [5]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_when_a_validation_is_due(options: dict[str, Any], batches: list[int]):
    moments = Moments()
    trainer(moments, max_steps=6, **options).fit(Small())
    assert moments.due == moments.validated == batches


class Ends(L.Callback):
    """The begins and ends of a fit."""

    def __init__(self, may_begin: bool):
        self.may_begin = may_begin
        self.seen: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        fit_loop.begin_finished_fit(trainer, lambda: self.may_begin)

    def on_train_start(self, *args: Any) -> None:
        self.seen.append("start")

    def on_train_end(self, *args: Any) -> None:
        self.seen.append("end")


@pytest.mark.parametrize(("may_begin", "seen"), [(False, []), (True, ["start", "end"])])
def test_a_fit_without_a_step_left_begins_if_it_may(may_begin: bool, seen: list[str]):
    ends = Ends(may_begin)
    trainer(ends, max_steps=0).fit(Small())
    assert ends.seen == seen


class Counted(L.Callback):
    """The epochs that are counted at the start of each batch, before and after `count_open_epoch`."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, int], dict[str, int]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        progress = trainer.fit_loop.epoch_progress
        before = deepcopy(vars(progress.total))
        fit_loop.count_open_epoch(trainer)
        assert vars(progress.total) == vars(progress.current)
        self.seen.append((before, deepcopy(vars(progress.total))))


class AtLast(L.Callback):
    """The checkpoint of an epoch's last batch, written when it ends."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_last_batch and trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def test_an_open_epoch_is_counted_as_lightning_does_but_after_a_resume(tmp_path: Path):
    counted, path = Counted(), tmp_path / "last.ckpt"
    trainer(counted, AtLast(path), max_steps=2 * BATCHES).fit(Small())
    assert [before for before, _ in counted.seen] == [after for _, after in counted.seen]
    assert [after["started"] for _, after in counted.seen] == [1] * BATCHES + [2] * BATCHES
    resumed = Counted()
    trainer(resumed, max_steps=3 * BATCHES).fit(Small(), ckpt_path=path)
    first, *later = resumed.seen
    assert first[0] != first[1]  # epochs that Lightning leaves uncounted
    assert first[1]["started"] == 3
    assert [before for before, _ in later] == [after for _, after in later]


class Late(L.Callback):
    """Validates when training has ended."""

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        before = counted(trainer)
        with fit_loop.at_last_batch(trainer):
            fit_loop.validate(trainer)
        assert counted(trainer) == before


def counted(trainer: L.Trainer) -> tuple[Any, ...]:
    loop = trainer.fit_loop
    state = deepcopy([loop.epoch_progress, loop.epoch_loop.batch_progress, loop.epoch_loop._batches_that_stepped])
    return trainer.training, trainer.validating, trainer._logger_connector._first_loop_iter, *state


@pytest.mark.parametrize("steps", [5, 2 * BATCHES], ids=["in an epoch", "at an epoch's end"])
def test_a_late_validation_is_that_of_the_last_batch(steps: int):
    """What is logged, its step and its epoch are those of a validation that Lightning runs itself."""
    own, late = Lines(), Lines()
    interval = {"val_check_interval": steps, "check_val_every_n_epoch": None}
    trainer(logger=own, max_steps=steps, **interval).fit(Small())
    trainer(Late(), logger=late, max_steps=steps, check_val_every_n_epoch=99).fit(Small())
    found, expected = ([line for line in lines.metrics if "val" in line[1]] for lines in (late, own))
    assert found == expected
    assert len(found) == 1


class Short(L.Callback):
    """Ends a fit after two steps, and validations after one batch."""

    def __init__(self) -> None:
        self.batches = self.validated = 0
        self.whole: int | None = None

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.whole = fit_loop.validation_batches(trainer)
        fit_loop.shorten_validation(trainer, 1)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.batches += 1
        if self.batches == 2:
            fit_loop.end_here(trainer)

    def on_validation_batch_end(self, *args: Any) -> None:
        self.validated += 1


def test_a_fit_and_its_validations_can_be_cut_short():
    short = Short()
    fit = trainer(short, val_check_interval=1)
    fit.fit(Small())
    assert (short.batches, short.validated, short.whole) == (2, 2, BATCHES)
    assert (fit.global_step, fit.max_steps) == (2, 2)


def test_without_validation_it_has_no_batches():
    short = Short()
    trainer(short, limit_val_batches=0).fit(Small())
    assert (short.whole, short.validated) == (0, 0)


def test_time_between_validations():
    assert fit_loop.validation_interval(trainer(val_check_interval="00:00:01:30")) == 90.0
    assert fit_loop.validation_interval(trainer(val_check_interval=2)) is None
