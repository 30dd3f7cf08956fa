"""The fit loop's counters in a checkpoint, moved to where Lightning resumes exactly. Plain dicts in, changed in place.

A counter has four numbers, `ready`, `started`, `processed` and `completed`: how many batches or epochs came so far.
"""

from __future__ import annotations

from typing import Any

from lightning_app.training.checkpoint_keys import LOOPS

Counts = dict[str, int]


def fit_loop_of(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the fit loop; None in a checkpoint of weights alone. Seen in Lightning 2.6.6."""
    return checkpoint[LOOPS]["fit_loop"] if LOOPS in checkpoint else None


def batches_learned_in(loop: dict[str, Any]) -> int:
    """Over all epochs. Seen in Lightning 2.6.6."""
    return loop["epoch_loop.batch_progress"]["total"]["processed"]


def epoch_of(loop: dict[str, Any]) -> int:
    """The number of the epoch in work, or of the one that may have just been closed. Seen in Lightning 2.6.6."""
    return max(0, loop["epoch_progress"]["current"]["processed"] - 1)


def open_epoch(counts: Counts) -> None:
    """Count as in the middle of an epoch: one more was started than was processed. Seen in Lightning 2.6.6."""
    counts["ready"] = counts["started"] = counts["processed"] + 1
    counts["completed"] = counts["processed"]


def reopen_epoch(loop: dict[str, Any], *, accumulate: int) -> None:
    """Turn the state of a fit loop whose epoch is closed into that at the end of the epoch's last batch.

    With `max_steps` Lightning 2.6.6 would count one epoch too many, and lose batches.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epochs["total"]["processed"] == 0 or epochs["total"]["processed"] < epochs["total"]["started"]:
        return  # the epoch is open
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] -= 1
        open_epoch(counts)
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"] - 1
    if batches["is_last_batch"] or batches["current"]["processed"] % accumulate == 0:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds it again


def unfetch(loop: dict[str, Any]) -> bool:
    """Turn the state of a fit loop with a batch in work into that before the batch was fetched, if there is one.

    Lightning 2.6.6 saves the batch as fetched, so that a resume would leave it out.
    """
    progress = loop["epoch_loop.batch_progress"]
    if progress["total"]["ready"] == progress["total"]["processed"]:
        return False
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"]
    progress["is_last_batch"] = False
    for state in loop["state_dict"].get("combined_loader", []):
        if "batches" in state:  # a ResumableLoader's
            state["batches"] -= 1
    return True


def end_at_batch(loop: dict[str, Any], *, began_next: bool, accumulate: int) -> None:
    """Turn the state of a fit loop behind a batch (about a validation, in the next batch) into that at its end.

    In an epoch's first batch one fewer than none was completed: Lightning 2.6.6 counts it when it begins again.
    """
    epochs, batches = loop["epoch_progress"]["total"], loop["epoch_loop.batch_progress"]
    if epochs["processed"] == epochs["started"] or not (began_next or batches["current"]["processed"]):
        return  # the epoch is closed, or has not begun
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"] - 1
    if began_next and batches["current"]["processed"] % accumulate == 0:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds it again
