from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_app.training.lightning_internals.command_line import CommandLine
from tests.training.lightning_internals.small import Small

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Sized(Small):
    """Fails at its first step where its size is 13."""

    def __init__(self, size: int = 1):
        super().__init__()
        self.save_hyperparameters()
        self.size = size

    def on_train_start(self) -> None:
        if self.size == 13:
            raise KeyError("thirteen")


class Line(CommandLine):
    ended: list[str]

    def __init__(self, args: list[str]):
        self.ended = []
        trainer_defaults: dict[str, Any] = {**QUIET, "max_steps": 1, "callbacks": EarlyStopping("val")}
        options: dict[str, Any] = {"seed_everything_default": 0, "save_config_callback": None}
        super().__init__(Sized, trainer_defaults=trainer_defaults, args=args, **options)

    def after_early_end(self) -> None:
        self.ended.append(str(self.subcommand))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a module of size 7, as its hyperparameters say."""
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.chdir(tmp_path)
    trainer = L.Trainer(**QUIET, max_steps=1, enable_checkpointing=False)
    trainer.fit(Sized(7))
    trainer.save_checkpoint("a.ckpt")
    assert torch.load("a.ckpt", weights_only=True)["hyper_parameters"]["size"] == 7
    return tmp_path / "a.ckpt"


def test_the_config_is_not_written_for_modules_that_save_hyperparameters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CommandLine, "_dump_config", lambda line: pytest.fail("the config is written"))
    assert Line(["validate", "--model.size=3"]).model.hparams["size"] == 3


def test_the_command_line_counts_and_not_the_checkpoint(checkpoint: Path):
    line = Line(["validate", "--model.size=3", "--ckpt_path", str(checkpoint)])
    assert line.model.size == 3
    assert line.ended == []


def test_what_was_built_from_the_config(checkpoint: Path):
    stops = '[{"class_path": "EarlyStopping", "init_args": {"monitor": "rows", "patience": 4}}]'
    line = Line(["validate", "--trainer.callbacks", stops])
    (callback,) = line.built("trainer").callbacks[:1]
    assert (type(callback), callback.patience) == (EarlyStopping, 4)
    assert line.trainer.callbacks[0] is callback


def test_an_early_end_is_told_and_goes_on_its_way(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(Line, "after_early_end", lambda line: told.append(line.subcommand))
    with pytest.raises(KeyError, match="thirteen"):
        Line(["fit", "--model.size=13"])
    assert told == ["fit"]
