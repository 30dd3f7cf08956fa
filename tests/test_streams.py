import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import pytest

from lightning_app.streams import lasting


@contextmanager
def closed_pipe() -> Iterator[TextIO]:
    """sys.stdout is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, redirect_stdout(stream):  # closed at the end, and so flushed
        yield stream


def test_nothing_is_raised_when_nobody_reads():
    with closed_pipe() as stream:
        with lasting():
            for _ in range(3):
                print("a line", flush=True)
            sys.stdout.writelines(["x" * 100_000, "y"])
            assert not sys.stdout.isatty()
        assert sys.stdout is stream


def test_what_is_still_held_at_the_end_is_dropped():
    with closed_pipe(), lasting():
        print("a line")


def test_other_output_is_as_it_was(capsys: pytest.CaptureFixture[str]):
    with lasting():
        print("a line")
        print("another", file=sys.stderr)
    assert tuple(capsys.readouterr()) == ("a line\n", "another\n")
