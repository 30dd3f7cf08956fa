"""A fit that a signal or an error has stopped, and that goes on, is the fit that was never stopped."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.series import best_validation
from lightning_app.training import checkpoint_io
from lightning_app.training.callbacks.last_checkpoint import Interruption, LastCheckpoint
from lightning_app.training.callbacks.run_log import RunLog, read_log
from lightning_app.training.compositions import ArticleGPT
from tests.conftest import write_config
from tests.sameness import assert_same_run

RUN = Path("runs/tiny/version_0")
EARLY_STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/ce", "patience": 9}}
OPTIONS: dict[str, Any] = {
    "trainer": {
        "max_steps": 9,
        "log_every_n_steps": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "callbacks": [EARLY_STOPPING],
    },
    "save_every_n_steps": 2,
}
TEXT = "the model learns what the teacher shows. nobody asks what it forgets, and why. "


def texts() -> None:
    Path("train.txt").write_text(TEXT * 20)
    Path("val.txt").write_text(TEXT * 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that was never stopped."""
    from lightning_app import closing
    from lightning_app.cli import main as command

    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(closing, "SAMPLED_TOKENS", 8)
        patch.setattr(closing, "CONTINUED_TOKENS", 2)
        texts()
        command(["fit", "--config", write_config(OPTIONS)])
    return folder / RUN


@pytest.fixture
def fit(tmp_path: Path, main: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.chdir(tmp_path)
    texts()
    name = write_config(OPTIONS)
    return lambda *words: main("fit", "--config", name, *words)


class Stop:
    """Does something once, at a moment of a fit: a function that is called in place of a hook, and calls it."""

    def __init__(self, action: Callable[[], None], when: Callable[..., bool]):
        self.action, self.when, self.done = action, when, False

    def before(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*args: Any, **kwargs: Any) -> Any:
            if not self.done and self.when(*args):
                self.done = True
                self.action()
            return hook(*args, **kwargs)

        return stopping


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def fail() -> None:
    raise RuntimeError("power cut")


def at_step(step: int) -> Callable[..., bool]:
    return lambda module, *args: module.trainer.global_step == step and not module.trainer.sanity_checking


MOMENTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "in a step": (ArticleGPT, "training_step", at_step(4)),
    "in the first step": (ArticleGPT, "training_step", at_step(0)),
    "in a validation": (ArticleGPT, "validation_step", at_step(3)),
    "in the last validation": (ArticleGPT, "validation_step", at_step(9)),
    "in a save": (checkpoint_io, "_write", lambda checkpoint, path: checkpoint["global_step"] == 4),
    "in best.ckpt's": (checkpoint_io, "_write", lambda c, path: path.name == "best.ckpt" and c["global_step"] == 6),
}


SLOW = pytest.mark.slow
CTRL_C, SIGTERM = (signal.SIGINT, 130), (signal.SIGTERM, 143)


@pytest.mark.parametrize(
    ("moment", "signum", "code"),
    [
        pytest.param("in a step", *SIGTERM),
        pytest.param("in the first step", *CTRL_C, marks=SLOW),
        pytest.param("in a validation", *CTRL_C, marks=SLOW),
        pytest.param("in the last validation", *SIGTERM, marks=SLOW),
        pytest.param("in a save", *SIGTERM, marks=SLOW),
        pytest.param("in best.ckpt's", *SIGTERM, marks=SLOW),
    ],
)
def test_it_goes_on_as_if_it_had_not_been_stopped(
    moment: str, signum: int, code: int, fit: Callable, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    owner, hook, when = MOMENTS[moment]
    stop = Stop(send(signum), when)
    with monkeypatch.context() as patch:
        patch.setattr(owner, hook, stop.before(getattr(owner, hook)))
        with pytest.raises(SystemExit) as ended:
            fit()
    assert ended.value.code == code
    assert stop.done
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    printed = capsys.readouterr().out
    events = [r.get("event") for r in read_log(RUN)]
    assert events[-1] == "interrupted"
    assert (RUN / "loss.png").is_file()
    table, command = printed.index("what was reached by step"), printed.index("to go on:")
    assert table < command
    assert printed.rstrip().endswith("fit --config tiny.yaml --ckpt_path runs/tiny/version_0/checkpoints/last.ckpt")
    fit("--ckpt_path", "last")
    assert_same_run(RUN, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["in a step", pytest.param("in a validation", marks=SLOW), pytest.param("in best.ckpt's", marks=SLOW)]
)
def test_an_error_keeps_the_last_whole_step(
    moment: str, fit: Callable, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    owner, hook, when = MOMENTS[moment]
    when = at_step(5) if moment == "in a step" else when  # not one that is saved anyway
    with monkeypatch.context() as patch:
        patch.setattr(owner, hook, Stop(fail, when).before(getattr(owner, hook)))
        with pytest.raises(RuntimeError, match="power cut"):
            fit()
    saved = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved == {"in a step": 5, "in a validation": 3, "in best.ckpt's": 6}[moment]
    printed = capsys.readouterr().out
    assert printed.index("what was reached by step") < printed.index("to go on:")
    assert [r["message"] for r in read_log(RUN) if r.get("event") == "failed"] == ["power cut"]
    fit("--ckpt_path", "last")
    assert_same_run(RUN, whole)


def test_an_error_before_training_draws_and_writes_nothing(fit: Callable, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ArticleGPT, "configure_optimizers", lambda module: fail())
    with pytest.raises(RuntimeError, match="power cut"):
        fit()
    assert "to go on" not in capsys.readouterr().out
    assert not (RUN / "loss.png").exists()


@pytest.mark.slow  # tests/test_bad_input.py has it too
def test_weights_that_are_not_finite_replace_no_checkpoint(fit: Callable, monkeypatch: pytest.MonkeyPatch):
    def spoil(module: ArticleGPT, batch: Any, batch_idx: int) -> None:
        if module.trainer.global_step == 5:
            with torch.no_grad():
                next(module.parameters()).fill_(torch.nan)

    monkeypatch.setattr(ArticleGPT, "on_train_batch_start", spoil)
    with pytest.raises(SystemExit) as ended:
        fit()
    assert ended.value.code == 1
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_time_limit_ends_with_0_a_validation_and_more_time_in_the_command(fit: Callable, capsys: Any):
    fit("--trainer.max_time", '{"milliseconds": 200}', "--trainer.max_steps", 100_000)
    printed = capsys.readouterr().out
    assert best_validation(RunFolder(RUN).records()) is not None
    assert (RUN / "checkpoints/best.ckpt").is_file()
    assert "--trainer.max_time" in printed.split("to go on:")[1]


@pytest.mark.parametrize(("steps", "interval"), [(4, 3), pytest.param(2, 50, marks=SLOW)])
def test_a_fit_ends_with_a_validation_of_its_last_step(fit: Callable, steps: int, interval: int):
    fit("--trainer.max_steps", steps, "--trainer.val_check_interval", interval)
    validated = [r["step"] for r in read_log(RUN) if "val/ce" in r and "event" not in r]
    assert validated == [step for step in range(1, steps + 1) if step % interval == 0 or step == steps]
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    (scores,) = (state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint"))
    assert last["global_step"] == steps
    assert float(scores["current_score"]) == [r["val/ce"] for r in read_log(RUN) if "val/ce" in r][-2]  # then "closed"
    events = [r.get("event") for r in read_log(RUN)]
    assert events.index("ended") > max(i for i, name in enumerate(events) if name == "passages")


def test_a_second_signal_ends_at_once():
    child = os.fork()
    if child == 0:
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        callback = Interruption(LastCheckpoint(), RunLog(logs_errors=False))
        callback._install(trainer)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


@pytest.mark.slow
def test_slurm_requeues_the_job_at_the_step_that_was_reached(
    fit: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued.txt\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "fit", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODELIST", "here")
    stop = Stop(send(signal.SIGUSR1), at_step(4))
    monkeypatch.setattr(ArticleGPT, "training_step", stop.before(ArticleGPT.training_step))
    with pytest.raises(SystemExit) as ended:
        fit()
    assert ended.value.code == 128 + signal.SIGUSR1
    assert Path("requeued.txt").read_text() == "requeue 77\n"
    for path in (RUN / "checkpoints/last.ckpt", Path("hpc_ckpt_1.ckpt")):
        assert torch.load(path, weights_only=True)["global_step"] == 5


def test_an_accumulation_is_finished_first(fit: Callable, monkeypatch: pytest.MonkeyPatch):
    stop = Stop(send(signal.SIGTERM), lambda module, batch, batch_idx: batch_idx == 4)
    monkeypatch.setattr(ArticleGPT, "training_step", stop.before(ArticleGPT.training_step))
    with pytest.raises(SystemExit):
        fit("--trainer.accumulate_grad_batches", 4, "--trainer.limit_val_batches", 0, "--trainer.callbacks", "[]")
    saved = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == 8
