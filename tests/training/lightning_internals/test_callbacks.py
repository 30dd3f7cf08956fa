from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint, Timer

from lightning_app.data.accumulation import accumulation_schedule
from lightning_app.training.lightning_internals import callbacks
from tests.training.lightning_internals.small import BATCHES, Small, trainer

EACH_STEP: dict[str, Any] = {"val_check_interval": 1, "check_val_every_n_epoch": None}


def saving(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, monitor="val", filename="{step}", **options)


def test_timers_are_those_of_max_time_and_of_a_config():
    assert callbacks.timers(trainer()) == []
    (timer,) = callbacks.timers(trainer(max_time=timedelta(seconds=90)))
    assert callbacks.time_limit(timer) == 90
    assert not callbacks.is_up(timer)
    assert callbacks.time_limit(Timer()) is None
    assert not callbacks.is_up(Timer())
    own = Timer(duration=timedelta(0), verbose=False)
    fit = trainer(own, max_steps=50)
    fit.fit(Small())
    assert callbacks.timers(fit) == [own]
    assert callbacks.is_up(own)
    assert fit.global_step < 50


class Accumulated(L.Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        schedule = accumulation_schedule(trainer)
        assert schedule is not None
        assert trainer.accumulate_grad_batches == schedule.get_accumulate_grad_batches(trainer.current_epoch)
        self.seen.append(trainer.accumulate_grad_batches)


def test_a_schedule_of_accumulation_says_what_is_in_force():
    assert accumulation_schedule(trainer(accumulate_grad_batches=2)) is None
    seen = Accumulated()
    trainer(GradientAccumulationScheduler({1: 3}), seen, max_steps=4).fit(Small())
    assert seen.seen == [1] * BATCHES + [3] * BATCHES


@pytest.mark.parametrize("asked", [True, False])
def test_watchers_decide_after_the_validation(tmp_path: Path, asked: bool):
    """One validation an epoch: by itself Lightning waits for the epoch's end, which `max_steps` cuts off."""
    stop, save = EarlyStopping("val"), saving(tmp_path)
    fit = trainer(stop, save, max_steps=2, limit_train_batches=2, enable_checkpointing=True)
    assert callbacks.watchers(fit) == [(stop, "val"), (save, "val")]
    fit.callbacks.append(ModelCheckpoint(dirpath=tmp_path / "other"))  # watches nothing
    assert callbacks.watchers(fit) == [(stop, "val"), (save, "val")]
    assert callbacks.model_checkpoints(fit)[0] is save
    fit.callbacks.pop()
    decided = Decided(asked)
    fit.callbacks.insert(0, decided)
    fit.fit(Small())
    assert decided.at_end == ([1.0, 1.0] if asked else [float("inf"), None])


class Decided(L.Callback):
    """Scores of both watchers when an epoch ends, before they look."""

    def __init__(self, asked: bool):
        self.asked = asked
        self.at_end: list[float | None] = []

    def setup(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        for watcher, _ in callbacks.watchers(trainer) if self.asked else []:
            callbacks.decide_after_validation(watcher)

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        found = [watcher for watcher, _ in callbacks.watchers(trainer)]
        scores = [x.best_score if isinstance(x, EarlyStopping) else x.best_model_score for x in found]
        self.at_end = [None if score is None else float(score) for score in scores]


@pytest.mark.parametrize("given", [True, False])
def test_what_an_option_says_holds(tmp_path: Path, given: bool):
    stop, save = EarlyStopping("val", check_on_train_epoch_end=given), saving(tmp_path, save_on_train_epoch_end=given)
    callbacks.decide_after_validation(stop)
    callbacks.decide_after_validation(save)
    assert (stop._check_on_train_epoch_end, save._save_on_train_epoch_end) == (given, given)


def test_a_checkpoint_lies_where_it_is_placed(tmp_path: Path):
    placed, own = ModelCheckpoint(monitor="val", filename="{step}"), saving(tmp_path / "own", mode="max")
    fit = trainer(placed, own, enable_checkpointing=True, max_steps=3)
    callbacks.place_checkpoints(fit.callbacks, tmp_path / "run")
    fit.fit(Small())
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ckpt")) == [
        "own/step=3.ckpt",
        "run/step=3.ckpt",
    ]


class Resets(L.Callback):
    """Before the third validation."""

    def __init__(self, reset: Any):
        self.reset, self.validations = reset, 0

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.validations += 1
        if self.validations == 3:
            self.reset(trainer)


@pytest.mark.parametrize(("reset", "step"), [(callbacks.reset_best_checkpoint, 3), (lambda trainer: None, 1)])
def test_the_best_checkpoint_is_one_since_the_reset(tmp_path: Path, reset: Any, step: int):
    """The losses of the first two are lower, as before a cut."""
    save = saving(tmp_path)
    fit = trainer(Resets(reset), save, enable_checkpointing=True, max_steps=4, **EACH_STEP)
    fit.fit(Small(val=(1.0, 2.0, 5.0, 6.0)))
    assert [path.name for path in tmp_path.iterdir()] == [f"step={step}.ckpt"]
    assert Path(save.best_model_path).name == f"step={step}.ckpt"
    assert float(save.best_model_score) == {3: 5.0, 1: 1.0}[step]  # type: ignore[arg-type]
    assert float(save.kth_value) == float(save.best_model_score)  # type: ignore[arg-type]


@pytest.mark.parametrize(("reset", "steps"), [(callbacks.reset_early_stopping, 5), (lambda trainer: None, 3)])
def test_patience_counts_from_the_reset(reset: Any, steps: int):
    stop = EarlyStopping("val", patience=2)
    fit = trainer(Resets(reset), stop, max_steps=9, **EACH_STEP)
    fit.fit(Small(val=(1.0, 2.0, 5.0, 6.0, 7.0, 8.0, 9.0)))
    assert fit.global_step == steps


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_worst_score_is_what_lightning_begins_with(tmp_path: Path, mode: str):
    assert EarlyStopping("val", mode=mode).best_score == callbacks.worst(mode)
    assert saving(tmp_path, mode=mode).kth_value == callbacks.worst(mode)


def test_options_of_a_callback_that_its_state_may_overrule(tmp_path: Path):
    stop, own = EarlyStopping("val", patience=4), Resets(None)
    ((found, options),) = callbacks.options_of_all(trainer(own, stop))
    assert found is stop
    assert options["patience"] == 4
    assert options["monitor"] == "val"
    assert {"mode", "save_top_k", "monitor"} <= callbacks.options(saving(tmp_path)).keys()
    stop.load_state_dict({**stop.state_dict(), "patience": 9})
    assert callbacks.options(stop)["patience"] == 9
    callbacks.set_option(stop, "patience", 4)
    assert stop.patience == 4


def test_steps_between_checkpoints(tmp_path: Path):
    by_steps = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3)
    fit = trainer(by_steps, saving(tmp_path), enable_checkpointing=True)
    fit.fit(Small())
    assert sorted(callbacks.steps_between(c) for c in callbacks.model_checkpoints(fit)) == [0, 3]
