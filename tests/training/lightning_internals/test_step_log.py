from __future__ import annotations

from typing import Any

import lightning as L
import pytest

from lightning_app.training.lightning_internals.step_log import log_hyperparameters, numbers_of_step, step_to_log
from tests.training.lightning_internals.small import Lines, Small, trainer


class Early(L.Callback):
    """What a batch is going to log, looked at when it ends; and what is said at other moments."""

    def __init__(self) -> None:
        self.found: list[tuple[int, dict[str, Any]]] = []
        self.elsewhere: list[int | None] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = step_to_log(trainer)
        if step is not None:
            self.found.append((step, numbers_of_step(trainer)))

    def look(self, trainer: L.Trainer, *args: Any) -> None:
        self.elsewhere.append(step_to_log(trainer))

    on_train_start = on_train_batch_start = on_validation_start = on_validation_end = on_train_epoch_end = look
    on_train_end = look


@pytest.mark.parametrize("options", [{}, {"log_every_n_steps": 2}, {"accumulate_grad_batches": 2, "max_steps": 4}])
def test_what_a_step_logs_is_known_when_its_batch_ends(options: dict[str, Any]):
    early, lines = Early(), Lines()
    trainer(early, logger=lines, **options).fit(Small())
    logged = [line for line in lines.metrics if "rows" in line[1]]
    assert early.found == logged
    assert len(logged) == {"log_every_n_steps": 2, "accumulate_grad_batches": 4}.get(next(iter(options), ""), 5)
    assert set(early.elsewhere) == {None}


class Loggers(L.Callback):
    """Gives the trainer its logger when training begins."""

    def __init__(self, logger: Lines):
        self.logger = logger

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.loggers = [self.logger]
        log_hyperparameters(trainer)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_late_logger_gets_the_hyperparameters(wanted: bool):
    lines = Lines()
    trainer(Loggers(lines), enable_autolog_hparams=wanted).fit(Small(val=(3.0,)))
    assert lines.options == ({"val": (3.0,)} if wanted else {})
