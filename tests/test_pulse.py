"""A line where nothing was said for a while."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from lightning_app import pulse as module
from lightning_app import streams
from lightning_app.pulse import RANK, counted, pulse
from lightning_app.streams import lasting

LONGEST = 0.2  # seconds


def lines_of(seconds: float, capsys: pytest.CaptureFixture[str], *, talks: bool = False) -> int:
    with lasting(), pulse("fit", longest=LONGEST):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(LONGEST / 20)
            if talks:
                print("a line")
    return capsys.readouterr().err.count("fit: at work, elapsed 0:0")


def test_a_quiet_run_says_a_line_in_time(capsys: pytest.CaptureFixture[str]):
    assert 3 <= lines_of(6 * LONGEST, capsys) <= 7


def test_one_that_talks_says_no_more(capsys: pytest.CaptureFixture[str]):
    assert lines_of(3 * LONGEST, capsys, talks=True) == 0


def test_other_ranks_and_terminals_say_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setenv(RANK, "1")
        assert lines_of(3 * LONGEST, capsys) == 0
    monkeypatch.setattr(streams._Lasting, "isatty", lambda _: True, raising=False)
    assert lines_of(3 * LONGEST, capsys) == 0


def test_items_are_counted_with_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    now = iter(range(0, 1000, 7))  # seconds
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert list(counted("abcd", total=4, what="storing")) == list("abcd")
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert lines == ["storing: 2 of 4, left 0:14", "storing: 4 of 4, left 0:00"]
