"""Fits in processes of their own that are ended at a moment of choice; forked, so that nothing is imported again."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 300  # after which a fit counts as hanging


@dataclass(frozen=True)
class Blow:
    """How and when a fit is ended.

    Attributes:
        how: "time": a signal from outside. "open", "rename": kill -9 where it opens a file of the run for writing, or
            renames one. "half": kill -9 when half of a checkpoint is on the disk.
        when: seconds for "time", else how many of these come before.
        signum: of "time".
    """

    how: str
    when: float
    signum: int = signal.SIGKILL


def draw(chance: random.Random, seconds: float, counts: dict[str, int]) -> Blow:
    """A blow somewhere in a fit that takes `seconds` and has so many writes of each kind."""
    how = chance.choice(["time", "time", *counts])
    if how != "time":
        return Blow(how, chance.randrange(max(1, counts[how])))
    signum = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    return Blow("time", chance.uniform(0, seconds), signum)


def fit(words: Sequence[str], said: Path, blow: Blow | None = None) -> int:
    """Exit code of `main.py` with these words in a process of its own; below 0 for a signal. Output goes to `said`."""
    child = start(words, said, blow)
    began, hit = time.monotonic(), False
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        passed = time.monotonic() - began
        if blow and blow.how == "time" and not hit and passed > blow.when:
            os.kill(child, blow.signum)
            hit = True
        if passed > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"{words} hangs after {blow}: {said.read_text()[-2000:]}")
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def start(words: Sequence[str], said: Path, blow: Blow | None = None, **environment: str) -> int:
    """The same, not waited for; the number of the process."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        _child(words, said, blow)  # never returns
    return child


def start_ranks(words: Sequence[str], said: Path, number: int = 2) -> list[int]:
    """One process for each rank, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(number)}
    return [start(words, said, **places, LOCAL_RANK=str(rank)) for rank in range(number)]


def wait(children: Sequence[int]) -> list[int]:
    """Exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _child(words: Sequence[str], said: Path, blow: Blow | None) -> None:
    code: Any = 1
    try:
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if blow and blow.how != "time":
            _arm(blow)
        from lightning_app import closing
        from lightning_app.cli import main

        closing.SAMPLED_TOKENS = 20
        main(list(words))
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def _arm(blow: Blow) -> None:
    """Let this process kill itself at the write that was chosen."""
    left = int(blow.when)

    def strike() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        named = {"open": "open", "rename": "os.rename"}[blow.how]
        if event == named and is_write(event, args):
            strike()

    if blow.how == "half":
        _write_half(strike)
    else:
        sys.addaudithook(hook)


def is_write(event: str, args: tuple[Any, ...]) -> bool:
    """Whether a file in a run's folder is opened for writing, or takes the place of another there."""
    path, mode = (args[0], args[1]) if event == "open" else (args[1], "w")
    return isinstance(path, str | Path) and str(mode)[:1] in "wax" and "/runs/" in os.path.abspath(path)


def _write_half(strike: Any) -> None:
    import torch

    save = torch.save

    def saving(thing: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(thing, file, *args, **kwargs)
        file.flush()
        os.ftruncate(file.fileno(), file.tell() // 2)
        strike()
        file.seek(0)
        file.truncate()
        save(thing, file, *args, **kwargs)

    torch.save = saving
