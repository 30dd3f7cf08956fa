"""`make test-soak`: 2,000 steps with everything on, watched from outside. What grows without end shows here.

Prints a table; exit code 1 where memory, log or page grow beyond their bounds. Seconds per step are only printed, as
they say as much of the machine as of the code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
EVERY = 0.5  # seconds between two looks
MEMORY, LOG, PAGE = 1.02, 1_500, 400_000  # ratio, bytes per step, bytes
EARLY, LATE = (200, 400), (1_800, 2_000)  # steps that are compared


@dataclass(frozen=True)
class Look:
    """One look at the process: time of day, CPU seconds so far, bytes in RAM."""

    at: float
    cpu: float
    memory: int


def watched_fit(folder: Path) -> list[Look]:
    """Run the fit into `folder` -> what was seen of it."""
    import psutil  # of requirements-dev.txt

    words = [
        "fit",
        "--config",
        "tests/soak/soak.yaml",
        "--runs_dir",
        str(folder),
        "--data.cache_dir",
        str(folder / "cache"),
    ]
    looks: list[Look] = []
    with psutil.Popen([sys.executable, "main.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                times = process.cpu_times()
                looks.append(Look(time.time(), times.user + times.system, process.memory_info().rss))
            except psutil.NoSuchProcess:
                break
            time.sleep(EVERY)
    if process.returncode:
        sys.exit(f"the fit ended with exit code {process.returncode}")
    return looks


def times_of_steps(run: Path) -> tuple[list[int], list[float]]:
    """Logged training steps, and when each was logged."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [(record["step"], record["time"]) for record in records if "train/loss" in record]
    return [step for step, _ in logged], [at for _, at in logged]


def report(run: Path, looks: list[Look]) -> bool:
    """Print the table; whether all stayed within its bounds."""
    steps, times = times_of_steps(run)
    at = np.interp([*EARLY, *LATE], steps, times)
    seen = [look.at for look in looks]
    cpu = np.interp(at, seen, [look.cpu for look in looks])
    early, late = cpu[1] - cpu[0], cpu[3] - cpu[2]

    def memory(start: float, end: float) -> float:
        return float(np.median([look.memory for look in looks if start <= look.at <= end]))

    before, after = memory(at[0], at[1]), memory(at[2], at[3])
    log, page = (run / "log.jsonl").stat().st_size / steps[-1], (run / "dashboard.html").stat().st_size
    print(f"steps              {steps[-1]:,}")
    print(
        f"memory             {before / 2**20:,.1f} -> {after / 2**20:,.1f} MiB, {after / before:.3f} (at most {MEMORY})"
    )
    print(f"log                {log:,.0f} bytes a step (at most {LOG:,})")
    print(f"page               {page:,} bytes (at most {PAGE:,})")
    ms = [1e3 * seconds / (EARLY[1] - EARLY[0]) for seconds in (early, late)]
    print(f"CPU ms per step    {ms[0]:.1f} -> {ms[1]:.1f}, {late / early:.2f} (1.15 is meant)")
    return after / before <= MEMORY and log <= LOG and page <= PAGE


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        looks = watched_fit(Path(folder))
        sys.exit(0 if report(Path(folder) / "soak" / "version_0", looks) else 1)


if __name__ == "__main__":
    main()
