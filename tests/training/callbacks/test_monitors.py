from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.training.callbacks.run_log import read_log


def stopping(monitor: str, **options: Any) -> dict[str, Any]:
    return {"class_path": "EarlyStopping", "init_args": {"monitor": monitor, **options}}


def saving(monitor: str) -> dict[str, Any]:
    return {"class_path": "ModelCheckpoint", "init_args": {"monitor": monitor, "filename": "x"}}


@pytest.mark.parametrize(
    ("watcher", "sanity"),
    [(stopping("val/los"), 2), pytest.param(saving("val_loss"), 2, marks=pytest.mark.slow), (stopping("val/los"), 0)],
    ids=["EarlyStopping", "ModelCheckpoint", "without a validation before training"],
)
def test_a_number_that_is_not_there_is_named_before_training(
    fails: Callable, config: Callable, watcher: dict, sanity: int
):
    error = fails("fit", "--config", config({"trainer": {"callbacks": [watcher], "num_sanity_val_steps": sanity}}))
    monitor = watcher["init_args"]["monitor"]
    assert f"error: {watcher['class_path']}'s monitor is {monitor}, which is not logged; perhaps val/loss?" in error
    assert "There are: val/acc, val/bpb, val/ce, val/f1, val/loss, val/ppl" in error
    log = Path("runs/tiny/version_0/log.jsonl")
    assert not log.exists() or "started" not in [r.get("event") for r in read_log(log.parent)]


def test_another_is_named_after_the_first_validation(fails: Callable, config: Callable):
    error = fails("fit", "--config", config({"trainer": {"callbacks": [stopping("loss")]}}))
    assert "EarlyStopping's monitor is loss, which is not logged" in error
    assert "train/ce" in error


def test_numbers_of_training_may_be_watched(main: Callable, config: Callable):
    watchers = [stopping("train/ce", check_on_train_epoch_end=False), saving("train/loss")]
    main("fit", "--config", config({"trainer": {"callbacks": watchers}}))
    assert read_log("runs/tiny/version_0")[-1]["event"] == "closed"


def test_without_a_validation_its_numbers_cannot_stop_a_fit(fails: Callable, config: Callable):
    name = config({"trainer": {"callbacks": [stopping("val/ce")], "limit_val_batches": 0}})
    assert "EarlyStopping's monitor is val/ce, but there is no validation" in fails("fit", "--config", name)


def test_a_fit_that_ends_within_its_first_epoch_has_a_best(main: Callable, config: Callable):
    """Validation once an epoch: Lightning's EarlyStopping and ModelCheckpoint would look at the epoch's end alone."""
    trainer = {
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "max_steps": 2,
        "callbacks": [stopping("val/ce")],
    }
    main("fit", "--config", config({"trainer": trainer}))
    checkpoints = Path("runs/tiny/version_0/checkpoints")
    assert torch.load(checkpoints / "best.ckpt", weights_only=True)["global_step"] == 2
    saved = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]
    (stopper,) = (state for key, state in saved.items() if key.startswith("EarlyStopping"))
    (best,) = (r["val/ce"] for r in read_log(checkpoints.parent) if "val/ce" in r and "event" not in r)
    assert float(stopper["best_score"]) == best
