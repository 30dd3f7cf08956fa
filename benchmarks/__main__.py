"""`python -m benchmarks [PART ...] [--quick]`: measure and write docs/benchmarks.md (`--quick` prints alone).

With the names of some parts only their sections are measured anew; each section says at which commit it was measured.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import (
    art,
    cuda,
    dry_run,
    fit_overhead,
    generation,
    memory,
    plasticity,
    recompute,
    serving,
    text,
    train_step,
)
from benchmarks.common import header

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
ALL = (text, fit_overhead, generation, serving, train_step, recompute, memory, art, plasticity, dry_run, cuda)
PARTS = {part.__name__.rpartition(".")[2]: part for part in ALL}
TITLE = """# Benchmarks

`make bench` wrote this page, or some of its sections, each of which ends with where it was measured. Each side of a
comparison runs in a process of its own, on one thread, and the sides take turns in rotating order after a warm-up.
What is compared is CPU time (on a GPU wall time): a ratio is the median over the rounds, with the smallest and the
largest beside it, and missed targets stay in the tables. Before the times are compared, the sides are checked to have
done the same work: equal losses, ids, tokens or batches."""


class Report:
    """Prints each section and writes it to `path` at once, so that a crash keeps what was measured.

    Args:
        path: a section of the same title is replaced, another one goes to the end; None prints only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, section: str) -> None:
        print(section, end="\n\n", flush=True)
        if self.path is None:
            return
        old = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        sections = {
            _title(part): part.strip() for part in re.split(r"^(?=## )", old, flags=re.MULTILINE) if part.strip()
        }
        sections[_title(section)] = section
        self.path.write_text("\n\n".join(sections.values()) + "\n", encoding="utf-8")


def _title(section: str) -> str:
    """Its first line; everything above the first `##` is one section."""
    first = section.strip().splitlines()[0]
    return first if first.startswith("## ") else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, one round, nothing written")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report = Report(None if args.quick else REPORT)
    report.add(TITLE)
    for name in args.parts or PARTS:
        for table in PARTS[name].tables(args.quick):
            report.add(f"{table.markdown()}\n\n{header()}")


if __name__ == "__main__":
    main()
