"""`python -m tests.fuzz --n 10000 --seed 0`; ends with 1 where a case failed."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import tests.each_process
import tests.fuzz.files
import tests.fuzz.requests
import tests.fuzz.yamls  # noqa: F401  (each registers its kinds)
from tests.fuzz.registry import ACCEPTED, FAILURES, KINDS, OTHER, REFUSED, SAME, WORD, Case, numbers

log = logging.getLogger(__name__)
OUTCOMES = (REFUSED, WORD, SAME, OTHER, ACCEPTED, *FAILURES)
SHOWN = 5  # failures of a kind that are printed


@dataclass
class Result:
    """What came of the cases of a kind."""

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(n: int, *, seed: int, kinds: list[str]) -> dict[str, Result]:
    """Try `n` cases of these kinds."""
    return {name: _tried(name, range(count), seed=seed) for name, count in numbers(n, kinds).items()}


def _tried(name: str, chosen: range, *, seed: int) -> Result:
    result, start = Result(), time.monotonic()
    with _made(name) as case:
        for number in chosen:
            outcome = case(random.Random(f"{seed} {name} {number}"))
            result.counts[outcome.name] += 1
            if outcome.name in FAILURES:
                result.failures.append(f"{outcome.name} --seed {seed} --only '{name}:{number}': {outcome.note}")
    result.seconds = time.monotonic() - start
    log.info("%s: %d cases in %.0f s, %d failures", name, len(chosen), result.seconds, len(result.failures))
    return result


@contextmanager
def _made(name: str) -> Iterator[Case]:
    with TemporaryDirectory(prefix="fuzz-") as folder:
        made = KINDS[name](Path(folder))
        with made if isinstance(made, AbstractContextManager) else nullcontext(made) as case:
            yield case


def table(results: dict[str, Result]) -> str:
    """One row for each kind, and their sum."""
    total = Result(
        sum(r.seconds for r in results.values()), sum((r.counts for r in results.values()), start=Counter[str]())
    )
    rows = [("kind", "cases", "seconds", *OUTCOMES)]
    for name, r in [*results.items(), ("all", total)]:
        rows.append((name, f"{r.counts.total():,}", f"{r.seconds:.1f}", *(f"{r.counts[o]:,}" for o in OUTCOMES)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def command() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="cases of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--only", metavar="KIND:NUMBER", help="repeat this case")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    if args.only:
        name, _, number = args.only.rpartition(":")
        results = {name: _tried(name, range(int(number), int(number) + 1), seed=args.seed)}
    else:
        results = fuzz(args.n, seed=args.seed, kinds=args.kinds)
    print(table(results))
    failures = [failure for result in results.values() for failure in result.failures[:SHOWN]]
    print("\n".join(failures))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    command()
