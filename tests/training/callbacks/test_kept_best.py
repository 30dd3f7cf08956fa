"""A run that goes on keeps its best, wherever its folder lies and however its path is spelt."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.training.checkpoint_io import read_checkpoint

RUN = Path("runs/tiny/version_0")


def best_state(path: Path) -> dict[str, Any]:
    states = read_checkpoint(path)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("ModelCheckpoint"))
    return state


@pytest.fixture
def tiny(trained: Path) -> Path:
    """A finished run in the working folder, and `hard.txt`, whose loss is higher whatever is learned."""
    Path("hard.txt").write_text("".join(random.Random(0).choices("QXZJ#%&", k=300)))
    return RUN


def moved() -> tuple[Path, list[str]]:
    Path("runs").rename("elsewhere")
    return Path("elsewhere/tiny/version_0"), ["--runs_dir", "elsewhere"]


def named() -> tuple[Path, list[str]]:
    RUN.rename("runs/tiny/the_good_one")
    return Path("runs/tiny/the_good_one"), ["--ckpt_path", "runs/tiny/the_good_one/checkpoints/last.ckpt"]


def copied() -> tuple[Path, list[str]]:
    shutil.copytree(RUN, "runs/tiny/version_7")
    return Path("runs/tiny/version_7"), ["--ckpt_path", "runs/tiny/version_7/checkpoints/last.ckpt"]


def spelt() -> tuple[Path, list[str]]:
    return RUN, ["--runs_dir", str(Path("runs").resolve())]


@pytest.mark.parametrize("how", [moved, spelt, *(pytest.param(how, marks=pytest.mark.slow) for how in (named, copied))])
def test_a_worse_model_does_not_replace_the_best(
    tiny: Path, main: Callable[..., None], capsys: pytest.CaptureFixture[str], how: Callable[[], tuple[Path, list[str]]]
):
    run, options = how()
    last, best = run / "checkpoints/last.ckpt", run / "checkpoints/best.ckpt"
    score, content = best_state(best)["current_score"], best.read_bytes()
    worse = ["--data.val.path", "hard.txt", "--trainer.max_steps", 9]
    main("fit", "--config", "tiny.yaml", "--ckpt_path", "last", *options, *worse)
    assert best.read_bytes() == content
    state = best_state(last)
    assert state["best_model_score"] == state["kth_value"] == score
    assert Path(state["best_model_path"]).resolve() == best.resolve()
    assert f"{best}\n" in capsys.readouterr().out  # of the step that the table names


def test_a_better_model_replaces_it(tiny: Path, main: Callable[..., None]):
    Path("runs").rename("elsewhere")
    best = Path("elsewhere/tiny/version_0/checkpoints/best.ckpt")
    before = best_state(best)["current_score"]
    main("fit", "--config", "tiny.yaml", "--ckpt_path", "last", "--runs_dir", "elsewhere", "--trainer.max_steps", 9)
    assert read_checkpoint(best)["global_step"] == 9
    assert best_state(best)["best_model_score"] < before


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_begins_its_best_anew(
    tiny: Path, main: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    """Its folder, log and table are its own; the best so far stays where it lies."""
    content = (tiny / "checkpoints/best.ckpt").read_bytes()
    last = tiny / "checkpoints/last.ckpt"
    worse = ["--data.val.path", "hard.txt", "--trainer.max_steps", 9]
    main("fit", "--config", "tiny.yaml", "--name", "second", "--ckpt_path", last, *worse)
    best = Path("runs/second/version_0/checkpoints/best.ckpt")
    assert read_checkpoint(best)["global_step"] == 9
    assert best_state(best)["best_model_path"] == str(best)
    assert (tiny / "checkpoints/best.ckpt").read_bytes() == content
    assert "does not lie whole in runs/second/version_0/checkpoints, so the best checkpoint there begins" in caplog.text


def test_a_run_that_goes_back_keeps_what_was_reached_after_it(
    tiny: Path, main: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    """The checkpoint that it goes on from knows of no best; the file says itself what it is."""
    checkpoints = tiny / "checkpoints"
    old = torch.load(checkpoints / "best.ckpt", weights_only=True)
    (key,) = (key for key in old["callbacks"] if key.startswith("ModelCheckpoint"))
    score = old["callbacks"][key]["current_score"]
    early = torch.load(checkpoints / "last.ckpt", weights_only=True)
    early["callbacks"][key]["best_k_models"] = {"runs/tiny/version_0/checkpoints/best.ckpt": torch.tensor(99.0)}
    torch.save(early, checkpoints / "early.ckpt")
    worse = ["--data.val.path", "hard.txt", "--trainer.max_steps", 9]
    main("fit", "--config", "tiny.yaml", "--ckpt_path", checkpoints / "early.ckpt", *worse)
    assert read_checkpoint(checkpoints / "best.ckpt")["global_step"] == old["global_step"]
    assert best_state(checkpoints / "last.ckpt")["best_model_score"] == score


@pytest.mark.slow
def test_the_table_names_the_step_of_a_best_that_is_not_the_logs(
    tiny: Path, main: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    log = tiny / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"val/ce"' not in line))
    worse = ["--data.val.path", "hard.txt", "--trainer.max_steps", 9]
    main("fit", "--config", "tiny.yaml", "--ckpt_path", "last", *worse)
    printed = capsys.readouterr().out
    assert re.search("best at step +9\n", printed)
    assert f"{RUN}/checkpoints/best.ckpt  (of step 6)" in printed
