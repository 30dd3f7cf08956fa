"""The command line that resumes a stopped run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

REPLACED = ("--ckpt_path", "--init_from", "--trainer.max_time")  # by what goes on; --init_from contradicts it


def resume_command(
    argv: Sequence[str], checkpoint: Path, *, max_time: timedelta | None = None, init_from: bool = False
) -> str:
    """`argv` with this checkpoint; where `max_time` ended the run, with a new limit.

    Args:
        argv: the words of the command that was stopped, without the program.
        checkpoint: its last.ckpt.
        max_time: the new limit, which counts the time before the stop too.
        init_from: whether a config may name one, which contradicts the checkpoint.
    """
    words = [*_program(), *_without(argv), "--ckpt_path", str(checkpoint)]
    if init_from:
        words += ["--init_from", "null"]
    if max_time is not None:
        words += ["--trainer.max_time", clock_of(max_time)]
    return shlex.join(words)


def _program() -> list[str]:
    path = Path(sys.argv[0])
    return ["python", sys.argv[0]] if path.suffix == ".py" else [path.name]


def _without(argv: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in argv:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name in REPLACED:
            skip = not equals
        else:
            kept.append(word)
    return kept


def clock_of(time: timedelta) -> str:
    """As trainer.max_time takes it: DD:HH:MM:SS."""
    minutes, seconds = divmod(int(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
