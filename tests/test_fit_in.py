"""`fit_in` sizes a run by its speed, and the run is that of the number given by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.checkpoint_keys import OURS, STEP, WEIGHTS

UNSIZED = {"trainer": {"max_steps": -1, "val_check_interval": 20}}


def saved(run: Path) -> dict:
    return read_checkpoint(run / "checkpoints/last.ckpt")


def same_weights(one: Path, other: Path) -> bool:
    first, second = (saved(run)[WEIGHTS] for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def slow_steps(monkeypatch):
    """`slow_steps(0.5)`: what the copy has measured is replaced, so that few steps fit into a second."""
    from lightning_app.training.callbacks.short_fit import ShortFit

    return lambda seconds: monkeypatch.setattr(ShortFit, "_of_batch", lambda self: seconds)


def test_a_sized_run_is_the_run_with_the_number_by_hand(folder: Path, config, main, slow_steps):
    config(UNSIZED)
    slow_steps(0.5)
    main("fit", "--config", "tiny.yaml", "--fit_in", "20 seconds")
    run = Path("runs/tiny/version_0")
    options = yaml.safe_load((run / "config.yaml").read_text())
    steps = options["trainer"]["max_steps"]
    assert 30 < steps < 80
    assert options["fit_in"] is None
    assert saved(run)[STEP] == saved(run)[OURS]["options"]["max_steps"] == steps
    main("fit", "--config", "tiny.yaml", "--trainer.max_steps", steps)
    assert same_weights(run, Path("runs/tiny/version_1"))
    main("fit", "--config", run / "config.yaml")
    assert same_weights(run, Path("runs/tiny/version_2"))
