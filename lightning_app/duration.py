"""How long a fit may take, as it is written in a config: "8 minutes"."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from lightning_app.errors import InputError

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_WORDS = re.compile(rf"(\d+(?:\.\d+)?) *({'|'.join(UNITS)})s?")
_CLOCK = re.compile(r"(\d+):(\d+):(\d+):(\d+)")  # as trainer.max_time
_SIZES = (86400, 3600, 60, 1)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    text = str(timedelta(seconds=max(0, round(seconds))))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text


def in_words(seconds: float) -> str:
    """The largest whole unit: 200 -> "3 minutes"."""
    unit, size = next(((name, size) for name, size in reversed(UNITS.items()) if seconds >= size), ("second", 1))
    n = max(0, int(seconds // size))
    return f"{n} {unit}{'' if n == 1 else 's'}"


def of_clock(text: object) -> float | None:
    """Seconds of "DD:HH:MM:SS"; None of anything else."""
    found = _CLOCK.fullmatch(str(text).strip())
    return float(sum(int(n) * size for n, size in zip(found.groups(), _SIZES, strict=True))) if found else None


def seconds_of(text: object, *, option: str) -> float:
    """Seconds of "90 seconds", "1.5 hours" or "DD:HH:MM:SS".

    Args:
        text: as a config or a command line gives it.
        option: that has it, for the message.

    Raises:
        InputError: it is something else, or not above 0.
    """
    words = _WORDS.fullmatch(str(text).strip())
    seconds = float(words[1]) * UNITS[words[2]] if words else of_clock(text) or 0.0
    if not 0 < seconds < math.inf:
        raise InputError(
            f"{option} is {text!r}; it must be a time above 0 such as `8 minutes`, `90 seconds`, `1.5 hours` or "
            "`00:00:08:00` (days:hours:minutes:seconds)"
        )
    return seconds
