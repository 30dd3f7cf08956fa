"""What the command line adds to a Trainer gives way to, or stands beside, what a config asks for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from lightning_app.app import default_callbacks
from lightning_app.errors import InputError
from lightning_app.trainer_parts import kept_defaults, with_atomic_writer
from lightning_app.training.callbacks.dashboard import Dashboard
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.callbacks.throughput import Throughput
from lightning_app.training.checkpoint_io import AtomicCheckpointIO

Main = Callable[..., None]
Config = Callable[..., str]


def left(*given: L.Callback, without: tuple[type[L.Callback], ...] = ()) -> set[str]:
    own = default_callbacks()
    kept = kept_defaults(own, given, without=without)
    assert [callback for callback in own if callback in kept] == kept
    return {type(callback).__name__ for callback in own} - {type(callback).__name__ for callback in kept}


def test_callbacks_give_way_or_stand_beside():
    assert left() == left(ModelCheckpoint(monitor="val/loss"), EarlyStopping("val/ce")) == set()
    assert left(without=(ProgressBar,)) == left(TQDMProgressBar()) == left(RichProgressBar()) == {"ProgressLine"}
    assert left(without=(Checkpoint,)) == {"ModelCheckpoint"}
    assert left(without=(ModelSummary,)) == left(RichModelSummary()) == {"ModelTable"}
    assert left(Dashboard(), Throughput(measure_peak=False)) == {"Dashboard", "Throughput"}
    with pytest.raises(InputError, match=r"trainer\.callbacks\.1 is a ModelCheckpoint of val/ce like the one"):
        left(EarlyStopping("val/ce"), ModelCheckpoint(monitor="val/ce", save_top_k=3))


def test_checkpoints_are_written_atomically_whatever_plugins_there_are():
    assert [type(x) for x in with_atomic_writer(None)] == [AtomicCheckpointIO]
    environment, own = LightningEnvironment(), TorchCheckpointIO()
    assert [type(x) for x in with_atomic_writer([environment])] == [LightningEnvironment, AtomicCheckpointIO]
    assert [type(x) for x in with_atomic_writer(environment)] == [LightningEnvironment, AtomicCheckpointIO]
    assert with_atomic_writer([own]) == [own]
    (wrapped,) = with_atomic_writer([AsyncCheckpointIO()])
    assert type(wrapped.checkpoint_io) is AtomicCheckpointIO


def test_a_fit_without_a_bar_or_checkpoints(main: Main, config: Config):
    main("fit", "--config", config({"trainer": {"enable_progress_bar": False, "enable_checkpointing": False}}))
    assert not list(Path("runs").rglob("*.ckpt"))
    assert json.loads(Path("runs/tiny/version_0/log.jsonl").read_text().splitlines()[-1])["event"] == "closed"


def test_a_configs_callback_replaces_ours_of_its_kind(main: Main, config: Config):
    """Lightning would refuse a second one, as both have a state."""
    quiet = {"class_path": "lightning_app.callbacks.Throughput", "init_args": {"measure_peak": False}}
    main("fit", "--config", config({"trainer": {"callbacks": [quiet], "limit_val_batches": 0}}))
    numbers = [record for record in read_log("runs/tiny/version_0") if "tokens_per_s" in record]
    assert len(numbers) == 6
    assert not any("peak_share" in record for record in numbers)


@pytest.mark.slow
def test_a_timer_stands_beside_max_time(main: Main, config: Config, capsys: pytest.CaptureFixture[str]):
    """Its `interval` is an enum by default, which jsonargparse would refuse to write."""
    timer = {"class_path": "Timer", "init_args": {"duration": "00:00:00:01"}}
    main(
        "fit", "--config", config({"trainer": {"callbacks": [timer], "max_time": "00:00:10:00", "max_steps": 100_000}})
    )
    assert "--trainer.max_time" in capsys.readouterr().out.split("to go on:")[1]


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"barebones": True}, "trainer.barebones is true"),
        pytest.param(
            {"callbacks": [{"class_path": "LearningRateFinder"}]},
            "trainer.callbacks.0 is a LearningRateFinder",
            marks=pytest.mark.slow,
        ),
        (
            {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/ce"}}] * 2},
            "Found more than one stateful callback of type `EarlyStopping`",
        ),
    ],
)
def test_what_cannot_work_is_one_line(fails: Callable[..., str], config: Config, trainer: dict[str, Any], words: str):
    error = fails("fit", "--config", config({"trainer": trainer})).splitlines()[-1]
    assert error.startswith("error: trainer.")
    assert words in error
