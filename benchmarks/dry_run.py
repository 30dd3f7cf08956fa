"""What `fit --dry_run` says of a fit, against the fit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import Row, Table, main, ratio_row

ROOT = Path(__file__).parent.parent
WITHIN = 0.15
ROUNDS = 3
BY_CPU_TIME = (
    "import sys, threading, time; time.monotonic = time.process_time; "
    "from lightning_app.cli import main; main(sys.argv[1:])"
)
SMALL = {"data.dataloader.batch_size": 4}
CONFIGS = {  # with small batches and few steps, so that a fit takes less than a minute where the machine is free
    "article GPT": (["article_gpt"], {"trainer.max_steps": 80, "trainer.val_check_interval": 40}),
    "VardaGPT": (["varda_gpt_offline"], {"trainer.max_steps": 40, "trainer.val_check_interval": 20}),
    "article GPT with ART": (
        ["article_gpt", "overlays/art"],
        {"trainer.max_steps": 60, "trainer.val_check_interval": 30},
    ),
}


@dataclass(frozen=True)
class Taken:
    """Seconds of CPU time, and bytes (the most that the process had)."""

    seconds: float
    memory: float


def words(configs: Sequence[str], options: dict[str, int]) -> list[str]:
    given = [word for name in configs for word in ("--config", str(ROOT / f"configs/{name}.yaml"))]
    return [*given, *(word for name, value in (SMALL | options).items() for word in (f"--{name}", str(value)))]


def command(folder: str, *argv: str) -> tuple[str, Taken]:
    """Output of a command in a process of its own, whose clock goes by CPU time, and what that took."""
    process = subprocess.Popen(
        [sys.executable, "-c", BY_CPU_TIME, *argv],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed:\n{output}")
    return output, Taken(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def foretold(output: str) -> Taken:
    """What a dry run has printed."""
    seconds = re.search(r"^time to the end .*\(([\d.]+) s\)", output, re.MULTILINE)
    memory = re.search(r"^peak memory +([\d.]+) (MB|GB)", output, re.MULTILINE)
    assert seconds is not None, output
    assert memory is not None, output
    return Taken(float(seconds[1]), float(memory[1]) * {"MB": 1e6, "GB": 1e9}[memory[2]])


def rounds(configs: Sequence[str], options: dict[str, int], *, n: int) -> Iterator[tuple[Taken, Taken]]:
    """Foretold and real, in turn; the token caches are there before."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(ROOT / "data")
        argv = words(configs, options)
        command(folder, "prepare", *argv)
        for _ in range(n):
            said = foretold(command(folder, "fit", *argv, "--dry_run")[0])
            real = command(folder, "fit", *argv)[1]
            print(f"{configs} foretold {said}, real {real}", file=sys.stderr, flush=True)
            yield said, real


def rows(name: str, *, quick: bool) -> list[Row]:
    configs, options = CONFIGS[name]
    if quick:
        options = {"trainer.max_steps": 8, "trainer.val_check_interval": 8}
    found = list(rounds(configs, options, n=1 if quick else ROUNDS))
    real = sorted(real.seconds for _, real in found)[len(found) // 2]
    what = f"{name}, {options['trainer.max_steps']} steps, {real:.0f} s"
    return [
        within(f"{what}: time foretold / taken", [said.seconds / real.seconds for said, real in found]),
        within(f"{what}: memory foretold / taken", [said.memory / real.memory for said, real in found]),
    ]


def within(what: str, ratios: Sequence[float]) -> Row:
    middle = sorted(ratios)[len(ratios) // 2]
    return replace(ratio_row(what, ratios), target=f"{1 - WITHIN:g} to {1 + WITHIN:g} x", met=abs(middle - 1) <= WITHIN)


NOTES = f"""`fit --dry_run` and the fit that it speaks of, in turn, each a process of its own on one thread: CPU
time of the whole process, imports and samples of the end included, and the most memory that it had. Shipped configs
with small batches and few steps, {ROUNDS} rounds."""


def tables(quick: bool = False) -> list[Table]:
    names = list(CONFIGS)[:1] if quick else CONFIGS
    return [Table("What a dry run foretells", [row for name in names for row in rows(name, quick=quick)], NOTES)]


if __name__ == "__main__":
    main(tables)
