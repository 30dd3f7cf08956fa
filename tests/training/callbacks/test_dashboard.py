from __future__ import annotations

import lightning as L
import pytest

from lightning_app.training.callbacks import dashboard
from lightning_app.training.callbacks.dashboard import Dashboard
from tests.training.lightning_internals.small import Small, trainer


class Drawn(Dashboard):
    """Notes at which steps it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[int] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.fitting = trainer

    def draw(self) -> None:
        self.at.append(self.fitting.global_step)


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [1, 2, 3, 4, 5, 5]), (1000.0, [1, 5])])
def test_it_draws_after_validations_and_at_the_end(seconds: float, steps: list[int], monkeypatch: pytest.MonkeyPatch):
    """Not after the sanity check: what is refused later leaves the page of an earlier start as it was."""
    monkeypatch.setattr(dashboard, "SECONDS", seconds)
    monkeypatch.setattr(dashboard, "SHARE", float("inf"))  # a busy machine may take long for nothing
    page = Drawn()
    trainer(page, val_check_interval=1, num_sanity_val_steps=1).fit(Small())
    assert page.at == steps
