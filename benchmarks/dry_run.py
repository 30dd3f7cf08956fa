"""What `fit --dry_run` says of a fit, against the fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import Row, Table, main, ratio_row

ROOT = Path(__file__).parent.parent
WITHIN = 0.15
ROUNDS = 3
MAIN = "from lightning_app.cli import main; main(sys.argv[1:])"
BY_THE_CLOCK = f"import sys; {MAIN}"
BY_CPU_TIME = (  # the log's times, too
    "import sys, threading, time; began = time.time(); time.monotonic = time.process_time; "
    f"time.time = lambda: began + time.process_time(); {MAIN}"
)
SMALL = {"data.dataloader.batch_size": 4}
SMOLLM2 = ROOT / "models/smollm2"
CONFIGS = {  # with small batches and few steps, so that a fit takes less than a minute where the machine is free
    "article GPT, mostly steps": (["article_gpt"], {"trainer.max_steps": 500, "trainer.val_check_interval": 250}),
    "SmolLM2 with LoRA": (
        ["smollm2"],
        {"trainer.max_steps": 12, "trainer.val_check_interval": 6, "data.block_size": 128},
    ),
    "VardaGPT": (["varda_gpt_offline"], {"trainer.max_steps": 40, "trainer.val_check_interval": 20}),
    "article GPT with ART": (
        ["article_gpt", "overlays/art"],
        {"trainer.max_steps": 60, "trainer.val_check_interval": 30},
    ),
}


@dataclass(frozen=True)
class Taken:
    """Of a process.

    Attributes:
        seconds: of all of it: CPU time, or by the clock.
        memory: bytes, the most that it had.
        repeated: seconds of steps, validations, samples and checkpoints, from the log's first numbers to its last.
    """

    seconds: float
    memory: float
    repeated: float


def words(configs: Sequence[str], options: dict[str, int]) -> list[str]:
    given = [word for name in configs for word in ("--config", str(ROOT / f"configs/{name}.yaml"))]
    return [*given, *(word for name, value in (SMALL | options).items() for word in (f"--{name}", str(value)))]


def command(folder: str, *argv: str, code: str = BY_CPU_TIME) -> tuple[str, float, float]:
    """Output of a command in a process of its own, its seconds by the clock that `code` has, and its peak memory."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
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
    seconds = usage.ru_utime + usage.ru_stime if code == BY_CPU_TIME else time.monotonic() - began
    return output, seconds, usage.ru_maxrss * 1024


def foretold(output: str, *, share: float) -> Taken:
    """What a dry run has printed.

    Args:
        share: of the fit's steps, which lie behind the first line of its log.
    """
    seconds = re.search(r"^time to the end .*?\(([\d.]+) s\)", output, re.MULTILINE)
    memory = re.search(r"^peak memory +([\d.]+) (MB|GB)", output, re.MULTILINE)
    assert seconds is not None, output
    assert memory is not None, output
    once = re.search(r"start and end ([\d.]+) (m?s)", output)
    batches = re.search(r"([\d,]+) batches of ([\d.]+) (m?s)", output)
    assert once is not None, output
    assert batches is not None, output
    units = {"s": 1.0, "ms": 1e-3}
    before = (1 - share) * int(batches[1].replace(",", "")) * float(batches[2]) * units[batches[3]]
    repeated = float(seconds[1]) - float(once[1]) * units[once[2]] - before
    return Taken(float(seconds[1]), float(memory[1]) * {"MB": 1e6, "GB": 1e9}[memory[2]], repeated)


def taken(folder: str, *argv: str, code: str) -> tuple[Taken, float]:
    """What a fit took, and the share of its steps behind the first line of its log."""
    _, seconds, memory = command(folder, *argv, code=code)
    log = max(Path(folder).glob("runs/*/version_*/log.jsonl"), key=lambda path: path.stat().st_ino)
    lines = [
        record
        for record in map(json.loads, log.read_text(encoding="utf-8").splitlines())
        if record.get("step") and "event" not in record
    ]
    first, last = lines[0], lines[-1]
    return Taken(seconds, memory, last["time"] - first["time"]), 1 - first["step"] / last["step"]


def rounds(configs: Sequence[str], options: dict[str, int], *, n: int, code: str) -> Iterator[tuple[Taken, Taken]]:
    """Foretold and real, in turn; the token caches are there before."""
    argv = words(configs, options)
    for _ in range(n):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("data", "models"):
                (Path(folder) / name).symlink_to(ROOT / name)
            command(folder, "prepare", *argv)
            output = command(folder, "fit", *argv, "--dry_run", code=code)[0]
            real, share = taken(folder, "fit", *argv, code=code)
            said = foretold(output, share=share)
            print(f"{configs} foretold {said}, real {real}", file=sys.stderr, flush=True)
            yield said, real


def rows(name: str, *, quick: bool) -> list[Row]:
    configs, options = CONFIGS[name]
    if quick:
        options = {"trainer.max_steps": 8, "trainer.val_check_interval": 4, "trainer.log_every_n_steps": 1}
    found = list(rounds(configs, options, n=1 if quick else ROUNDS, code=BY_CPU_TIME))
    clock = list(rounds(configs, options, n=1, code=BY_THE_CLOCK))
    real = sorted(real.seconds for _, real in found)[len(found) // 2]
    steps = sorted(real.repeated / real.seconds for _, real in found)[len(found) // 2]
    what = f"{name}, {options['trainer.max_steps']} steps, {real:.0f} s, {steps:.0%} of it repeated"
    return [
        within(f"{what}: time foretold / taken", [said.seconds / real.seconds for said, real in found]),
        within(f"{what}: repeated part alone", [said.repeated / real.repeated for said, real in found]),
        within(f"{what}: memory foretold / taken", [said.memory / real.memory for said, real in found]),
        ratio_row(f"{what}: time by the clock, beside other programs", [a.seconds / b.seconds for a, b in clock]),
    ]


def within(what: str, ratios: Sequence[float]) -> Row:
    middle = sorted(ratios)[len(ratios) // 2]
    return replace(ratio_row(what, ratios), target=f"{1 - WITHIN:g} to {1 + WITHIN:g} x", met=abs(middle - 1) <= WITHIN)


NOTES = f"""`fit --dry_run` and the fit that it speaks of, in turn, each a process of its own on one thread: CPU
time of the whole process, imports and samples of the end included, and the most memory that it had. The repeated part
is what lies between the first and the last line of numbers in the log: steps, validations, checkpoints. A dry run does
start and end as the fit does, so that it can hardly err in them. Shipped configs with small batches and few steps,
{ROUNDS} rounds. By the clock there is one round and no target: other programs run beside it."""


def tables(quick: bool = False) -> list[Table]:
    there = [name for name, (configs, _) in CONFIGS.items() if configs != ["smollm2"] or SMOLLM2.is_dir()]
    names = list(CONFIGS)[:1] if quick else there
    return [Table("What a dry run foretells", [row for name in names for row in rows(name, quick=quick)], NOTES)]


if __name__ == "__main__":
    main(tables)
