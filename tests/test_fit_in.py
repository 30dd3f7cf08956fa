"""`fit_in` sizes a run by its speed, and the run is that of the number given by hand."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_app import app, fit_in
from lightning_app.errors import InputError
from lightning_app.fit_in import Timed
from lightning_app.reports.log import read_log
from lightning_app.training.callbacks.short_fit import ShortFit
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.checkpoint_keys import OURS, SCHEDULERS, STEP, WEIGHTS

ROOT = Path(__file__).parent.parent
UNSIZED = {"trainer": {"max_steps": -1, "val_check_interval": 0.34, "log_every_n_steps": 10}}
FIT_IN = ["--fit_in", "30 seconds"]
TINY = Path("runs/tiny")


@pytest.fixture
def steps_take(monkeypatch: pytest.MonkeyPatch):
    """`steps_take(2.0)`: seconds that the copy finds in place of what a step takes, so that a run has few steps."""
    return lambda seconds: monkeypatch.setattr(ShortFit, "_of_batch", lambda self: seconds)


@pytest.fixture
def sized(folder: Path, config, steps_take):
    config(UNSIZED)
    steps_take(2.0)


def saved(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints/last.ckpt")


def options(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def check_same(*runs: Path) -> None:
    """The weights of both are equal, bit for bit."""
    one, other = (saved(run)[WEIGHTS] for run in runs)
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_a_sized_run_is_the_run_of_the_number_by_hand(sized, main, caplog):
    main("fit", "--config", "tiny.yaml", *FIT_IN)
    run = TINY / "version_0"
    steps = options(run)["trainer"]["max_steps"]
    assert 30 < steps < 50
    assert f"fit_in is 30 seconds: trainer.max_steps is {steps} ({steps} batches of 2.00 s, 3 val" in caplog.text
    assert saved(run)[STEP] == saved(run)[OURS]["options"]["max_steps"] == steps
    records = read_log(run)
    assert [r["max_steps"] for r in records if r.get("event") == "started"] == [steps]
    assert len([r for r in records if "val/ce" in r and "event" not in r]) == 3
    (schedule,) = saved(run)[SCHEDULERS]
    assert schedule["_last_lr"] == pytest.approx([0.1 * 1e-3] * 2)  # it has come to its end
    caplog.clear()
    main("fit", "--config", "tiny.yaml", "--trainer.max_steps", steps)
    assert "a copy of the run" not in caplog.text
    check_same(run, TINY / "version_1")


@pytest.mark.slow
def test_of_a_long_run_more_steps_are_timed(sized, main, monkeypatch):
    timed, after_fit = [], Timed.after_fit
    monkeypatch.setattr(fit_in, "LONG", 1.0)
    monkeypatch.setattr(Timed, "after_fit", lambda self: (timed.append(self._short), after_fit(self)))
    main("fit", "--config", "tiny.yaml", "--fit_in", "40 seconds", "--dry_run")
    seconds = [end - timed[0]._began for end, _ in timed[0]._steps]
    assert seconds[-1] >= 1.0
    assert len(seconds) == 1 + 30 or seconds[-2] < 1.0


@pytest.mark.slow
def test_its_config_yaml_gives_the_same_again(sized, main, caplog):
    main("fit", "--config", "tiny.yaml", *FIT_IN)
    caplog.clear()
    main("fit", "--config", TINY / "version_0/config.yaml")
    assert "a copy of the run" not in caplog.text
    check_same(TINY / "version_0", TINY / "version_1")


@pytest.mark.slow
def test_nothing_is_left_of_the_copy(sized, main):
    main("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2)
    threads = set(threading.enumerate())
    main("fit", "--config", "tiny.yaml", *FIT_IN, "--data.dataloader.num_workers", 1)
    assert set(threading.enumerate()) == threads
    assert multiprocessing.active_children() == []
    assert sorted(path.name for path in Path().iterdir()) == [".cache", "runs", "tiny.yaml", "train.txt", "val.txt"]
    assert sorted(path.name for path in TINY.iterdir()) == ["version_0", "version_1"]
    assert [path for path in Path(".cache").rglob("*") if "short_run" in path.name] == []


@pytest.mark.slow
def test_a_run_that_goes_on_measures_nothing(sized, config, main, caplog):
    each = {
        "class_path": "ModelCheckpoint",
        "init_args": {"filename": "at_{step}", "every_n_train_steps": 20, "save_top_k": -1},
    }
    config({**UNSIZED, "trainer": {**UNSIZED["trainer"], "callbacks": [each]}, "fit_in": "30 seconds"})
    main("fit", "--config", "tiny.yaml")
    run = TINY / "version_0"
    whole, steps = saved(run), options(run)["trainer"]["max_steps"]
    caplog.clear()
    main("fit", "--config", "tiny.yaml", "--ckpt_path", run / "checkpoints/at_step=20.ckpt")
    assert "a copy of the run" not in caplog.text
    assert f"trainer.max_steps is {steps}, as in the checkpoint's run: fit_in sizes a run once" in caplog.text
    assert (options(run)["fit_in"], options(run)["trainer"]["max_steps"]) == (None, steps)
    assert read_log(run)[-1]["step"] == steps
    assert all(torch.equal(whole[WEIGHTS][name], tensor) for name, tensor in saved(run)[WEIGHTS].items())


def test_a_checkpoint_that_does_not_know_the_number_needs_it(trained: Path, fails):
    path = trained / "checkpoints/last.ckpt"
    raw = torch.load(path, weights_only=True)
    del raw[OURS]["options"]["max_steps"]
    torch.save(raw, path)
    words = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", -1, *FIT_IN, "--ckpt_path", path)
    assert "last.ckpt does not say how many steps that was: give trainer.max_steps" in fails(*words)


def test_a_given_number_counts(folder: Path, main, caplog):
    main("fit", "--config", "tiny.yaml", *FIT_IN)
    said = caplog.text
    assert "trainer.max_steps is 6, so fit_in (30 seconds) does not count: -1 leaves it to fit_in" in said
    assert "a copy of the run" not in said
    assert options(TINY / "version_0")["trainer"]["max_steps"] == 6
    assert options(TINY / "version_0")["fit_in"] is None


def test_the_copy_ends_with_the_time(folder: Path, config, fails):
    config({**UNSIZED, "data": {"block_size": 64, "dataloader": {"batch_size": 32}}})
    said = fails("fit", "--config", "tiny.yaml", "--fit_in", "0.001 seconds")
    assert re.search(r"fit_in is 0.001 seconds, and of the 30 steps that a run is sized by \d fit in it \(", said)


@pytest.mark.parametrize("text", ["8", "8 min", "0 seconds"])
def test_what_is_no_time_is_refused_first(folder: Path, config, fails, text: str):
    config({"fit_in": text})
    assert f"fit_in is {text!r}; it must be a time above 0 such as `8 minutes`" in fails("fit", "--config", "tiny.yaml")
    assert "fit_in is 'soon'" in fails("fit", "--config", "tiny.yaml", "--fit_in", "soon")


def test_the_command_line_counts_before_the_config(folder: Path, config, main, caplog):
    config({"fit_in": "3 hours"})
    main("fit", "--config", "tiny.yaml", "--fit_in", "null")
    assert "fit_in" not in caplog.text


def test_other_commands_take_the_config(sized, config, main, capsys, caplog):
    config({**UNSIZED, "fit_in": "30 seconds"})
    main("prepare", "--config", "tiny.yaml")
    main("validate", "--config", "tiny.yaml")
    with pytest.raises(SystemExit):
        main("fit", "--config", "tiny.yaml", "--print_config")
    out = capsys.readouterr().out
    assert yaml.safe_load(out[out.index("# lightning") :])["fit_in"] == "30 seconds"
    assert "a copy of the run" not in caplog.text


@pytest.mark.slow
def test_a_limit_below_the_time_is_named(sized, main):
    with pytest.warns(UserWarning, match="fit_in is 30 seconds, and trainer.max_time 00:00:00:20 ends the run before"):
        main("fit", "--config", "tiny.yaml", *FIT_IN, "--trainer.max_time", "00:00:00:20")


@pytest.mark.slow
def test_a_dry_run_is_of_the_sized_run(sized, main, capsys, caplog):
    main("fit", "--config", "tiny.yaml", *FIT_IN, "--dry_run")
    steps = re.search(r"trainer\.max_steps is (\d+)", caplog.text)
    assert steps is not None
    assert re.search(rf"^steps +{steps[1]} \(max_steps\)$", capsys.readouterr().out, re.MULTILINE)
    assert not Path("runs").exists()


def test_a_share_of_a_run_without_a_number_is_refused(folder: Path, config, fails):
    config({**UNSIZED, "trainer": {**UNSIZED["trainer"], "max_epochs": 2}})
    said = fails("fit", "--config", "tiny.yaml")
    assert "trainer.val_check_interval is 0.34, a share of the run" in said
    assert "needs trainer.max_steps or fit_in" in said


def test_who_calls_the_harness_gives_a_number(sized):
    with pytest.raises(InputError, match=r"fit_in is 30 seconds, and this run does not say .* give trainer\.max_steps"):
        app.run(["fit", "--config", "tiny.yaml", *FIT_IN])
    assert not Path("runs").exists()


ENDS = {"class_path": "PlasticitySchedule", "init_args": {"cycles": 1, "pruning_level": 0.5, "training_steps": 5}}
ENDS["init_args"] |= {"warmup_steps": 5, "finetuning_steps": 5}
SEVEN = ["--trainer.limit_train_batches", 7, "--trainer.log_every_n_steps", 5]
UNUSUAL: dict[str, list[object]] = {
    "epochs of fewer steps": [*SEVEN],
    "steps of several batches": ["--trainer.accumulate_grad_batches", 3],
    "ends with its epochs": [*SEVEN, "--trainer.max_epochs", 2],
    "no seed": ["--seed_everything", "false"],
    "no validation": ["--trainer.limit_val_batches", 0],
    "streamed": ["--data.train.path", "hf:text:train.txt", "--data.train.streaming", "true"],
    "plasticity": ["--trainer.callbacks+", json.dumps(ENDS)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_runs(name: str, sized, main):
    torch.manual_seed(5)
    main("fit", "--config", "tiny.yaml", *FIT_IN, *UNUSUAL[name])
    steps = options(TINY / "version_0")["trainer"]["max_steps"]
    assert saved(TINY / "version_0")[STEP] == steps
    assert (steps == 14) == (name == "ends with its epochs")
    torch.manual_seed(5)
    main("fit", "--config", "tiny.yaml", "--trainer.max_steps", steps, *UNUSUAL[name])
    check_same(TINY / "version_0", TINY / "version_1")


@pytest.mark.slow
@pytest.mark.parametrize("run", sorted((ROOT / "tests/golden/runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_idea_and_callback_is_left_as_it_was(run: Path, folder: Path, main, steps_take):
    steps_take(2.0)
    shutil.copytree(ROOT / "tests/golden/text", "text")
    words = ("fit", "--config", ROOT / "tests/golden/base.yaml", "--config", run, "--name", "tiny")
    main(*words, "--trainer.max_steps", -1, "--fit_in", "25 seconds")
    steps = options(TINY / "version_0")["trainer"]["max_steps"]
    assert 30 <= steps < 100
    main(*words, "--trainer.max_steps", steps)
    check_same(TINY / "version_0", TINY / "version_1")


@pytest.mark.slow
def test_two_ranks_take_one_number(folder: Path, config):
    config({**UNSIZED, "trainer": {**UNSIZED["trainer"], "strategy": "ddp", "devices": 2}})
    words = [sys.executable, ROOT / "main.py", "fit", "--config", "tiny.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, "--fit_in", "20 seconds"], check=True, env=environment, timeout=200)
    steps = options(TINY / "version_0")["trainer"]["max_steps"]
    assert saved(TINY / "version_0")[STEP] == steps
    subprocess.run([*words, f"--trainer.max_steps={steps}"], check=True, env=environment, timeout=200)
    check_same(TINY / "version_0", TINY / "version_1")
