"""A command that is refused, or only reads, leaves a finished run's folder byte for byte as it was."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.compositions import ArticleGPT

RUN = Path("runs/tiny/version_0")
Fails = Callable[..., str]


def content(folder: Path = Path("runs")) -> dict[str, str]:
    """Digest of each file, and the folders."""
    digest = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}
    return digest | {str(p): "folder" for p in folder.rglob("*") if p.is_dir()}


@pytest.fixture
def finished(trained: Path) -> dict[str, str]:
    """What lies in `runs` after a fit and a prediction."""
    (RUN / "predictions.jsonl").write_text("{}\n")
    return content()


LAYERS = "--model.init_args.backbone.layers=2"
STOPPING = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los")
REFUSED = {
    "other layers": ("fit", "--ckpt_path", "last", LAYERS),
    "another batch size": ("fit", "--ckpt_path", "last", "--data.dataloader.batch_size=3", "--trainer.max_steps=9"),
    "a monitor that is not there": ("fit", "--ckpt_path", "last", "--trainer.max_steps=9", *STOPPING),
    "a text that is not there": ("fit", "--ckpt_path", "last", "--data.train.path=gone.txt"),
    "a new fit of such a text": ("fit", "--data.train.path=gone.txt"),
    "other layers predicted": ("predict", "--ckpt_path", "last", LAYERS),
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_a_refused_command(finished: dict[str, str], fails: Fails, words: tuple[str, ...]):
    fails(words[0], "--config", "tiny.yaml", *words[1:])
    assert content() == finished


READING = {
    "generate": ("generate", "--ckpt_path", "best", "--prompt", "the", "--max_new_tokens", 2),
    "compare": ("compare", "runs", "--output", "page.html"),
    "report": ("report", RUN, "--output", "page.html"),
    "prepare": ("prepare", "--config", "tiny.yaml"),
    "config": ("fit", "--config", "tiny.yaml", "--ckpt_path", "last", "--print_config"),
}


@pytest.mark.parametrize("words", READING.values(), ids=READING)
def test_a_command_that_reads(finished: dict[str, str], main: Callable[..., None], words: tuple[object, ...]):
    with suppress(SystemExit):  # of --print_config
        main(*words)
    assert content() == finished


def test_a_run_that_fails_once_it_has_begun_says_so(
    finished: dict[str, str], main: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    def crash(module: ArticleGPT, batch: object, batch_idx: int) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(ArticleGPT, "on_train_batch_start", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        main("fit", "--config", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_steps", 9)
    assert [r["event"] for r in read_log(RUN) if "event" in r][-2:] == ["resumed", "failed"]


@pytest.mark.slow
def test_fits_that_start_at_the_same_moment(finished: dict[str, str]):
    """Each has a folder and a log of its own; the ranks of one share theirs."""
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-W", "ignore", f"{root}/main.py", "fit", "--config", "tiny.yaml", "--name", "many"]
    two_ranks = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    fits = [subprocess.Popen([*command, *more], env=environment) for more in ([], [], two_ranks)]
    assert [fit.wait() for fit in fits] == [0, 0, 0]
    runs = sorted(Path("runs/many").iterdir())
    assert [run.name for run in runs] == ["version_0", "version_1", "version_2"]
    assert all([r["event"] for r in read_log(run) if "event" in r].count("started") == 1 for run in runs)
    assert all((run / "checkpoints/best.ckpt").is_file() for run in runs)
