from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_app.data.accumulation import accumulated, batches_left, steps_in


def trainer(accumulate: int = 1, schedule: dict[int, int] | None = None, batches: float = 10) -> Any:
    callbacks = [] if schedule is None else [GradientAccumulationScheduler(schedule)]
    return SimpleNamespace(accumulate_grad_batches=accumulate, callbacks=callbacks, num_training_batches=batches)


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({}, 3, 30),
        ({"accumulate": 4}, 3, 9),
        ({"schedule": {0: 4, 2: 2}}, 4, 3 + 3 + 5 + 5),
        ({"schedule": {1: 3}}, 2, 10 + 4),
    ],
)
def test_steps_of_so_many_epochs(options: dict[str, Any], epochs: int, steps: int):
    assert steps_in(trainer(**options), epochs=epochs, batches=10) == steps


def test_a_schedule_says_what_an_epoch_accumulates():
    assert [accumulated(trainer(schedule={1: 3, 4: 2}), epoch) for epoch in range(6)] == [1, 3, 3, 3, 2, 2]


@pytest.mark.parametrize("batches", [10, float("inf")])
def test_batches_left_of_a_step(batches: float):
    left = [batches_left(trainer(accumulate=4, batches=batches), i) for i in range(10)]
    assert left == [4, 3, 2, 1, 4, 3, 2, 1, *((2, 1) if batches == 10 else (4, 3))]
