"""The counters alone; tests/test_resume.py runs them through Lightning."""

from typing import Any

import pytest

from lightning_app.training.exact_resume import end_at_batch, reopen_epoch, unfetch


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
