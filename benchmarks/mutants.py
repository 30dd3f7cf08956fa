"""Do the tests notice broken code? `python -m benchmarks.mutants --seed 0 --n 60 [--list] [--resume FILE.json]`.

Draws `n` mutants of lightning_app, a quarter of each kind (`mutation_sites`), and runs for each the tests of the
mirrored folder (`mutation_runs`) in a copy of the tree. A mutant is caught, survives, or its tests run into the time
limit. Whether a survivor is equivalent (no behaviour changes) is `unknown` until somebody writes yes or no into FILE.

`--resume` writes each result to FILE at once, and leaves out what stands there already: a killed run goes on. The tree
must not change meanwhile: give `--root` a worktree of its own where others work.

`--apply FILE` asks in a later tree what was caught in an earlier one: each mutant of FILE that was not missed is looked
for by the name of its function or class and the text of its line, wherever its file now lies. If the name is gone, the
last part of it counts, then the line alone, as long as there is one such place. The rest is `not found`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.mutation_runs import Runner
from benchmarks.mutation_sites import KINDS, Mutant, sites

ROOT = Path(__file__).resolve().parent.parent
NOTICED = ("caught", "timeout")
SHOWN = 60  # characters of a change in the table


@dataclass(frozen=True)
class Result:
    """What is known of a mutant: one entry of the file.

    Attributes:
        status: caught, survived, timeout, `not found`, or empty until its tests have run.
        by: the test that caught it.
        found: in which way `--apply` found it.
        earlier: its status in the earlier tree.
        equivalent: of a survivor: unknown, yes or no.
    """

    mutant: Mutant
    status: str = ""
    by: str = ""
    seconds: float = 0.0
    found: str = ""
    earlier: str = ""
    equivalent: str = "unknown"

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Result:
        return cls(**{**entry, "mutant": Mutant(**entry["mutant"])})


# Which mutants


def drawn(found: Sequence[Mutant], *, n: int, seed: int) -> list[Mutant]:
    """Without repetition, in turn of each kind."""
    generator = random.Random(seed)
    by_kind = [[mutant for mutant in found if mutant.kind == kind] for kind in KINDS]
    for mutants in by_kind:
        generator.shuffle(mutants)
    return [by_kind[i % len(KINDS)][i // len(KINDS)] for i in range(n)]


def moved(mutant: Mutant, found: Sequence[Mutant]) -> tuple[Mutant | None, str]:
    """The same change in another tree, and by what it was found."""
    same = [other for other in found if other.key == mutant.key]
    exact = [other for other in same if other.nth == mutant.nth]
    if len(exact) == 1:
        return exact[0], "name and line"
    alike = [other for other in found if _change(other) == _change(mutant)]
    of_function = [other for other in alike if _last_name(other) == _last_name(mutant)]
    for candidates, how in ((of_function, "last name and line"), (alike, "line")):
        if len(candidates) == 1:
            return candidates[0], how
    return None, f"{len(alike)} places have the line" if alike else ""


def _change(mutant: Mutant) -> tuple[str, ...]:
    return mutant.kind, mutant.line, mutant.before, mutant.after


def _last_name(mutant: Mutant) -> str:
    return mutant.qualname.rpartition(".")[2]


def applied(before: Sequence[Result], found: Sequence[Mutant]) -> Iterator[Result]:
    """Those of an earlier tree that its tests did not miss, in this one."""
    for result in before:
        if result.status in NOTICED:
            mutant, how = moved(result.mutant, found)
            status = "" if mutant else "not found"
            yield Result(mutant or result.mutant, status=status, found=how, earlier=result.status)


# What came of them


class Results:
    """A list of results that is written after each change.

    Args:
        path: None: nowhere.
        request: what the list was made of; a file of another one is refused.
    """

    def __init__(self, path: Path | None, request: dict[str, Any], start: Sequence[Result]) -> None:
        self.path, self.request, self.all = path, request, list(start)
        if path is not None and path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["request"] != request:
                sys.exit(f"{path} holds results of {stored['request']}, not of {request}: give another file")
            self.all = [Result.from_json(entry) for entry in stored["mutants"]]

    def run(self, runner: Runner) -> None:
        """The tests of all that have no status yet."""
        for i, result in enumerate(self.all):
            if not result.status:
                verdict = runner.verdict(result.mutant)
                self.all[i] = replace(result, **asdict(verdict))
                print(f"{i + 1} of {len(self.all)}: {verdict.status}", file=sys.stderr, flush=True)
                self._write()

    def _write(self) -> None:
        if self.path is not None:
            entries = {"request": self.request, "mutants": [asdict(result) for result in self.all]}
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            new.replace(self.path)


def table(results: Sequence[Result]) -> str:
    """Markdown, a line each, and the sums."""
    rows = ["| " + " | ".join(_cells(result)) + " |" for result in results]
    head = "| kind | where | change | before | now | by |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows, "", *_sums(results)])


def _cells(result: Result) -> list[str]:
    mutant = result.mutant
    status = result.status or "not run"
    if result.status == "survived":
        status += f" (equivalent: {result.equivalent})"
    where = f"{mutant.file}:{mutant.number} {mutant.qualname}"
    cells = [mutant.kind, where, change(mutant), result.earlier, status, result.by or result.found]
    return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]


def change(mutant: Mutant) -> str:
    """The line, what is replaced in it, and by what."""
    before, after = (text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in (mutant.before, mutant.after))
    which = f" (number {mutant.nth + 1})" if mutant.nth else ""
    return f"`{mutant.line}`: `{before}`{which} -> `{after or ' '}`"


def _sums(results: Sequence[Result]) -> Iterator[str]:
    for kind in KINDS:
        counts = Counter(result.status or "not run" for result in results if result.mutant.kind == kind)
        yield f"{kind}: " + (", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "none")
    lost = [result for result in results if result.earlier and result.status == "survived"]
    if any(result.earlier for result in results):
        yield f"caught before, and not now: {len(lost)}"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=60, help="how many")
    parser.add_argument("--list", action="store_true", help="print them; run nothing")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="where results are written, and read from")
    parser.add_argument("--apply", type=Path, metavar="FILE", help="results of an earlier tree, instead of a draw")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree; by default this one")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the tests of one mutant")
    given = parser.parse_args(args)
    root, found = given.root.resolve(), sites(given.root.resolve())
    if given.apply:
        before = json.loads(given.apply.read_text(encoding="utf-8"))
        start = list(applied([Result.from_json(entry) for entry in before["mutants"]], found))
        request = {"apply": before["request"]}
    else:
        start = [Result(mutant) for mutant in drawn(found, n=given.n, seed=given.seed)]
        request = {"seed": given.seed, "n": given.n}
    results = Results(given.resume, request, start)
    if not given.list:
        results.run(Runner(root, timeout=given.timeout))
    print(table(results.all))


if __name__ == "__main__":
    main()
