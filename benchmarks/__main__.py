"""`python -m benchmarks [--quick]`: measure everything and write docs/benchmarks.md (`--quick` prints alone)."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import cuda, fit_overhead, generation, text, train_step
from benchmarks.common import header

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PARTS = (text, fit_overhead, generation, train_step, cuda)
TITLE = """# Benchmarks

`make bench` wrote this page: each side of a comparison runs in a process of its own, on one thread, and the sides take
turns in rotating order after a warm-up. What is compared is CPU time (on a GPU wall time): a ratio is the
median over the rounds, with the smallest and the largest beside it, and missed targets stay in the tables.
Before the times are compared, the sides are checked to have done the same work: equal losses, ids, tokens or
batches."""


class Report:
    """Prints each part, and appends it to `path` at once, so that a crash keeps what was measured.

    Args:
        path: written anew; None prints only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.write_text("", encoding="utf-8")

    def add(self, part: str) -> None:
        print(part, end="\n\n", flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if file.tell() else "") + part + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, one round, nothing written")
    quick = parser.parse_args().quick
    report = Report(None if quick else REPORT)
    report.add(TITLE)
    report.add(header())
    for part in PARTS:
        for table in part.tables(quick):
            report.add(table.markdown())


if __name__ == "__main__":
    main()
