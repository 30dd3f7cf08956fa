import time
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_app.callbacks.progress import ProgressLine, clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (62.4, "1:02"), (725, "12:05"), (3723, "1:02:03"), (-5, "0:00")]
)
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text


def trainer(**options: Any) -> Any:
    defaults = {"global_step": 10, "max_steps": -1, "max_epochs": None, "num_training_batches": 10, "callbacks": []}
    return SimpleNamespace(**{**defaults, "accumulate_grad_batches": 1, **options})


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"max_steps": 40}, 30),
        ({"max_epochs": 3}, 20),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 5),
        ({"max_epochs": -1}, None),
        ({"global_step": 0, "max_steps": 40}, None),
    ],
)
def test_time_left_from_the_pace_so_far(options: dict[str, int], seconds: float | None):
    line = ProgressLine()
    line._started = time.monotonic() - 10  # one step a second
    left = line.seconds_left(trainer(**options))
    assert left == (None if seconds is None else pytest.approx(seconds, abs=0.5))


def test_the_bar_shows_loss_val_loss_speed_and_time_left():
    line = ProgressLine()
    line._started = time.monotonic() - 10
    shown = {"train/loss": 2.5, "val/loss": 3.0, "tokens_per_s": 12345.6}
    metrics = line.get_metrics(trainer(max_steps=40, progress_bar_metrics=shown), None)  # type: ignore[arg-type]
    assert metrics == {"loss": 2.5, "val_loss": 3.0, "tokens/s": "12,346", "left": "0:30"}
