"""How all is measured: fresh processes, rotating order, CPU time of one thread, medians of per-round ratios."""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

Run = Callable[[], Any]  # does the work once and returns what it did, for the check that all sides did the same
PACKAGES = ("torch", "transformers", "litgpt", "faiss-cpu", "tokenizers", "tiktoken", "lightning")


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        value: as measured, with its unit.
        spread: smallest and largest of the rounds.
        met: None where there is no target.
    """

    name: str
    value: str
    spread: str = ""
    target: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        return self.name, self.value, self.spread, self.target, {True: "yes", False: "**no**", None: ""}[self.met]


@dataclass(frozen=True)
class Table:
    title: str
    rows: list[Row]
    notes: str = ""

    def markdown(self) -> str:
        head = ("", "measured", "spread", "target", "met")
        lines = [f"## {self.title}", "", self.notes, "", _line(head), _line(["---"] * len(head))]
        return "\n".join([*lines, *(_line(row.cells()) for row in self.rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Contestant:
    """A side of a comparison.

    Attributes:
        setup: a function of a module, called in the side's own process; returns what is timed.
    """

    name: str
    setup: Callable[..., Run]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timings:
    """CPU seconds and results of each side, one per round."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def ratios(self, name: str, rival: str) -> list[float]:
        """How many times faster `name` is than `rival`, round by round."""
        return [theirs / ours for ours, theirs in zip(self.seconds[name], self.seconds[rival], strict=True)]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def row(self, what: str, name: str, rival: str, *, at_least: float | None = None) -> Row:
        ratios = self.ratios(name, rival)
        return ratio_row(what, ratios, at_least=at_least)


def ratio_row(what: str, ratios: Sequence[float], *, at_least: float | None = None, unit: str = " x") -> Row:
    middle = statistics.median(ratios)
    target = "" if at_least is None else f">= {at_least:g}{unit}"
    met = None if at_least is None else middle >= at_least
    return Row(what, f"{middle:.2f}{unit}", f"{min(ratios):.2f} to {max(ratios):.2f}", target, met)


class Worker:
    """A side in a process of its own: allocator settings cannot be undone, and caches stay apart."""

    def __init__(self, contestant: Contestant):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contestant), daemon=True)
        self._process.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(False)
        self._process.join()

    def wait(self) -> Any:
        """(CPU seconds, result) of the last run, or None after the setup."""
        failed, answer = self._pipe.recv()
        if failed:
            raise RuntimeError(f"a benchmark process failed:\n{answer}")
        return answer

    def run(self) -> tuple[float, Any]:
        self._pipe.send(True)
        return self.wait()


def _serve(pipe: Any, contestant: Contestant) -> None:
    """Child process: set up, then run on request."""
    torch.set_num_threads(1)
    try:
        run = contestant.setup(**contestant.options)
        pipe.send((False, None))
        while pipe.recv():
            start = time.process_time()
            result = run()
            pipe.send((False, (time.process_time() - start, result)))
    except EOFError:  # the parent is gone
        return
    except Exception:  # handed to the parent, which raises
        pipe.send((True, traceback.format_exc()))


def compare(contestants: Sequence[Contestant], *, rounds: int, warmup: int = 2) -> Timings:
    """Run the sides in turn, each round in another order; the first rounds warm up and do not count."""
    with ExitStack() as stack:
        workers = {}
        for contestant in contestants:  # one after the other: a setup beside a setup needs both memories at once
            workers[contestant.name] = stack.enter_context(Worker(contestant))
            workers[contestant.name].wait()
        timings = Timings({name: [] for name in workers}, {name: [] for name in workers})
        names = list(workers)
        for i in range(warmup + rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                seconds, result = workers[name].run()
                timings.results[name].append(result)
                if i >= warmup:
                    timings.seconds[name].append(seconds)
    return timings


def check_equal(what: str, results: dict[str, list[Any]], *, tolerance: float) -> None:
    """Every side's results, round by round, against the first side's.

    Raises:
        AssertionError: the sides did not do the same work, so their times do not compare.
    """
    (first, expected), *others = results.items()
    for name, found in others:
        worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
        assert worst <= tolerance, f"{what}: {first} and {name} differ by {worst:g}, more than {tolerance:g}"


def matmul_rate(dtype: torch.dtype, *, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a plain F.linear of two size x size matrices: the limit of this machine, at this moment."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        F.linear(a, b)
        times.append(time.process_time() - start)
    return 2 * size**3 / statistics.median(times[1:])


def header() -> str:
    """Machine, versions, commit."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    where = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True)
    return (
        f"Python {platform.python_version()}, {versions}; commit {commit.stdout.strip() or 'none yet'}. "
        f"{processor()}, {os.cpu_count()} cores."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), platform.machine()
    )
    return model + "".join(f", {flag}" for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text)


def main(tables: Callable[[bool], Iterable[Table]]) -> None:
    """`python -m benchmarks.NAME [--quick]`: print this file's tables alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, one round")
    quick = parser.parse_args().quick
    print(header(), *(table.markdown() for table in tables(quick)), sep="\n\n")
    sys.stdout.flush()
