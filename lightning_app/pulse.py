"""A line where nothing was said for a while, for those who read a file, a CI log or a notebook."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from lightning_app.duration import clock
from lightning_app.streams import quiet_for

LONGEST = 15.0  # seconds without a line
AT_TERMINAL = 0.5  # seconds
T = TypeVar("T")
RANK = "LOCAL_RANK"  # the environment's variable of the processes that a fit on several devices starts


@contextmanager
def pulse(command: str, *, longest: float = LONGEST) -> Iterator[None]:
    """While it lasts no `longest` seconds pass without a line, unless a terminal shows bars; of other ranks none."""
    if sys.stdout.isatty() or os.environ.get(RANK, "0") != "0":
        yield
        return
    ended, began = threading.Event(), time.monotonic()
    thread = threading.Thread(target=_beat, args=(command, ended, began, longest), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def counted(items: Sequence[T] | Iterator[T], *, total: int, what: str) -> Iterator[T]:
    """The items, while stderr tells how many there were: on one line of a terminal, elsewhere a line every while."""
    at_terminal = sys.stderr.isatty()
    every, began = AT_TERMINAL if at_terminal else 0.6 * LONGEST, time.monotonic()
    said = began
    for n, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - said >= every:
            left = clock((now - began) / n * max(0, total - n))
            line = f"{what}: {n:,} of {total:,}, left {left}"
            print(f"{line:60}", end="\r" if at_terminal else "\n", file=sys.stderr, flush=True)
            said = now
    if at_terminal and said > began:
        print(" " * 60, end="\r", file=sys.stderr, flush=True)


def _beat(command: str, ended: threading.Event, began: float, longest: float) -> None:
    wait = longest
    while not ended.wait(wait):
        quiet = quiet_for()
        if quiet >= 0.9 * longest:
            print(f"{command}: at work, elapsed {clock(time.monotonic() - began)}", file=sys.stderr, flush=True)
            quiet = 0.0
        wait = max(0.05 * longest, 0.9 * longest - quiet)
