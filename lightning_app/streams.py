"""What is printed when nobody reads it any more, as in `fit | head`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_said = time.monotonic()  # when something was last written, in `lasting`


def quiet_for() -> float:
    """Seconds since something was written, or since this module was imported."""
    return time.monotonic() - _said


class _Lasting:
    """A text stream whose reader may go: what is then written is dropped, and nothing is raised."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        global _said
        _said = time.monotonic()
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            drop(self._stream)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def drop(stream: Any) -> None:
    """Send what this stream still holds, and all that follows, nowhere: else Python complains when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """A run is worth more than its output: a closed pipe does not end it."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Lasting(streams[0]), _Lasting(streams[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
