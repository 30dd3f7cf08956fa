import sys
from datetime import timedelta
from pathlib import Path

import pytest

from lightning_app.resume_command import resume_command

LAST = Path("runs/my run/version_0/checkpoints/last.ckpt")


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py"])


def test_the_same_words_with_the_checkpoint():
    words = ["fit", "--config", "a.yaml", "--name", "my run", "--trainer.max_steps=9"]
    expected = "python main.py fit --config a.yaml --name 'my run' --trainer.max_steps=9 --ckpt_path"
    assert resume_command(words, LAST) == f"{expected} '{LAST}'"


@pytest.mark.parametrize("words", [["--ckpt_path", "last"], ["--ckpt_path=last"], ["--init_from", "other.ckpt"]])
def test_where_the_fit_came_from_is_replaced(words: list[str]):
    plain = resume_command(["fit", "--seed_everything", "3"], LAST)
    assert resume_command(["fit", *words, "--seed_everything", "3"], LAST) == plain


def test_more_time():
    found = resume_command(
        ["fit", "--trainer.max_time", "00:01:00:00"], LAST, max_time=timedelta(days=1, hours=2, seconds=5)
    )
    assert found == f"python main.py fit --ckpt_path '{LAST}' --trainer.max_time 01:02:00:05"


def test_the_installed_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lightning-app"])
    assert resume_command(["fit"], Path("last.ckpt")) == "lightning-app fit --ckpt_path last.ckpt"
