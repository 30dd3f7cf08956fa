"""dashboard.html in the run's folder, drawn from the run's log after its validations."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L

from lightning_app.reports.dashboard import calls_for_page, write_dashboard
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.callbacks.run_log import run_folder

SHARE, SECONDS = 0.02, 10.0  # of the time at most, and between two drawings at least


class Dashboard(RunCallback):
    """Draws a run's page after validations, and at the end, an early one too; one without an idea's events gets none.

    `python main.py report` draws it at any time, and as a single file.
    """

    priority = Priority.PAGE

    def __init__(self) -> None:
        self._next = 0.0
        self._folder: RunFolder | None = None
        self._trains = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        folder = run_folder(trainer) if stage == "fit" else None
        self._folder, self._trains = folder if trainer.is_global_zero else None, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trains = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start = time.monotonic()
        if self._trains and start > self._next:
            self.draw()
            end = time.monotonic()
            self._next = end + max(SECONDS, (end - start) / SHARE)  # a long log takes long to read

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._trains:  # what is refused before leaves the page of an earlier start as it was
            self.draw()

    def draw(self) -> Path | None:
        """The page, if there is anything to show."""
        records = self._folder.records() if self._folder else []
        if self._folder is None or not calls_for_page(records):
            return None
        return write_dashboard(records, self._folder.dashboard, title=self._folder.title)
