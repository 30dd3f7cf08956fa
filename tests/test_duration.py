"""Times as a config gives them."""

from __future__ import annotations

import pytest

from lightning_app.duration import clock, in_words, seconds_of
from lightning_app.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8 minutes", 480),
        ("1 minute", 60),
        ("90 seconds", 90),
        ("1.5 hours", 5400),
        ("2days", 172800),
        (" 0.5 seconds ", 0.5),
        ("00:00:08:00", 480),
        ("01:02:03:04", 93784),
    ],
)
def test_seconds(text: str, seconds: float):
    assert seconds_of(text, option="fit_in") == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (62.4, "1:02"), (725, "12:05"), (3723, "1:02:03"), (-5, "0:00")]
)
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text


def test_in_words():
    said = {0.2: "0 seconds", 1: "1 second", 119: "1 minute", 7300: "2 hours", 90000: "1 day", -5: "0 seconds"}
    assert {seconds: in_words(seconds) for seconds in said} == said


@pytest.mark.parametrize(
    "text", ["", "8", 480, "8 min", "minutes", "-8 minutes", "0 hours", "00:00:00:00", "8:00", "1e3 seconds", True]
)
def test_what_is_no_time_is_named(text: object):
    with pytest.raises(InputError, match=r"^fit_in is .*; it must be a time above 0 such as `8 minutes`"):
        seconds_of(text, option="fit_in")
