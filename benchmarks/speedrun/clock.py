"""CPU seconds of a training, and how many steps fill a budget of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.contestant import JOB, Job
from lightning_app.errors import InputError

ROOT = Path(__file__).parent.parent.parent
SHORT = (2, 10)  # steps, the first two of a calibration
SHARE = 1 / 8  # of the budget, that the longest run of a calibration takes beyond the first
AIM = 0.97  # of the budget: steps cost some per cent more or less from run to run
AGAIN = 2  # times at most
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Timed:
    """A training that was kept.

    Attributes:
        cpu_seconds: of it, from the process's start to its end, with its children.
        spent: of it, its calibration and what was discarded.
        discarded: how many were.
    """

    job: Job
    cpu_seconds: float
    spent: float
    discarded: int


def cpu_seconds(job: Job) -> float:
    """Train in a process of its own, from an empty folder -> user and system time of it and its children.

    Raises:
        InputError: it failed, with the end of what it said.
    """
    shutil.rmtree(job.folder, ignore_errors=True)
    job.write()
    ended = run_timed(["benchmarks.peers", job.folder], Path(job.folder, "said.txt"), threads=job.threads)
    if ended.code:
        raise InputError(f"the training in {job.folder} ({JOB}) ended with {ended.code}:\n{ended.said[-2000:]}")
    return ended.cpu_seconds


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: it ended with.
        said: on both of its streams.
        cpu_seconds: user and system time, its children's too.
    """

    code: int
    said: str
    cpu_seconds: float


def run_timed(module: Sequence[str], said: Path, *, threads: int) -> Ended:
    """`python -m` these words, in a process of its own that writes what it says into a file."""
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_pin(threads),
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = said.read_text(encoding="utf-8", errors="replace")
    return Ended(process.returncode, text, usage.ru_utime + usage.ru_stime)


def _pin(threads: int) -> Callable[[], None] | None:
    """What keeps a process on as many cores as it has threads; with one, as two runs may go side by side, nothing."""
    if threads == 1 or not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return lambda: os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Cost:
    """CPU seconds: `fixed` + `each` * steps."""

    fixed: float
    each: float

    def steps(self, seconds: float) -> int:
        """The most that fit.

        Raises:
            InputError: none does.
        """
        found = int((seconds - self.fixed) / self.each)
        if found < 1:
            raise InputError(f"{self.fixed:.0f} CPU seconds go before the first step: {seconds:.0f} are too few")
        return found


Run = Callable[[Job], float]


def calibrate(job: Job, budget: float, run: Run = cpu_seconds) -> tuple[Cost, float]:
    """What a step costs, from short trainings, and the CPU seconds that these took."""
    first, most = SHORT
    start = run(replace(job, steps=first))
    spent, last, steps = start, start, min(most, max(first + 1, int(first * budget / (4 * start))))
    while last - start < SHARE * budget:
        steps = steps if last == start else _longer(steps, last - start, budget)
        last = run(replace(job, steps=steps))
        spent += last
    each = (last - start) / (steps - first)
    return Cost(start - first * each, each), spent


def _longer(steps: int, seconds: float, budget: float) -> int:
    """As many steps as take the share of the budget, by what fewer took; ten times as many at most."""
    return min(10 * steps, max(steps + 1, int(1.2 * steps * SHARE * budget / max(seconds, 0.1))))


def within(job: Job, budget: float, cost: Cost, *, overshoot: float, run: Run = cpu_seconds) -> Timed:
    """Train for as many steps as the budget allows.

    A run that takes more than `overshoot` times it is discarded, and done again with fewer steps, twice at most.

    Raises:
        InputError: the third one took too long, too.
    """
    spent, steps = 0.0, cost.steps(AIM * budget)
    for discarded in range(AGAIN + 1):
        job = replace(job, steps=steps)
        seconds = run(job)
        spent += seconds
        if seconds <= overshoot * budget:
            return Timed(job, seconds, spent, discarded)
        steps = min(steps - 1, int(steps * (AIM * budget - cost.fixed) / (seconds - cost.fixed)))
    took = f"{seconds:.0f} of {budget:.0f} CPU seconds with {job.steps} steps"
    raise InputError(f"{job.kind} took {took}, with fewer steps each time: is the machine busy?")
