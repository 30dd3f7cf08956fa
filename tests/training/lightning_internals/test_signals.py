from __future__ import annotations

import signal
import stat
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from lightning_app.training.lightning_internals import signals
from tests.training.lightning_internals.small import Small, trainer


class Handlers(L.Callback):
    def __init__(self, alone: bool):
        self.alone = alone
        self.seen: Any = None

    def setup(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.alone:
            signals.leave_signals_alone(trainer)

    def on_train_start(self, *args: Any) -> None:
        self.seen = signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("alone", [True, False])
def test_handlers_stay_where_they_are_left_alone(alone: bool):
    before, handlers = signal.getsignal(signal.SIGTERM), Handlers(alone)
    trainer(handlers, max_steps=1).fit(Small())
    assert (handlers.seen == before) is alone
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("environment", "signum"),
    [
        (LightningEnvironment, None),
        (SLURMEnvironment, signal.SIGUSR1),
        (lambda: SLURMEnvironment(requeue_signal=signal.SIGHUP), signal.SIGHUP),
        (lambda: SLURMEnvironment(auto_requeue=False), None),
    ],
)
def test_the_signal_of_a_requeue(environment: Any, signum: int | None, monkeypatch: pytest.MonkeyPatch):
    slurm(monkeypatch)
    assert signals.requeue_signal(trainer(plugins=[environment()])) == signum


class Requeue(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            signals.requeue(trainer, signal.SIGUSR1)


def test_a_requeue_saves_and_calls_scontrol(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued.txt\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    slurm(monkeypatch)
    trainer(Requeue(), plugins=[LightningEnvironment()]).fit(Small())
    assert Path("requeued.txt").read_text() == "requeue 77\n"
    assert torch.load("hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 2


def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "fit", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODELIST", "here")
