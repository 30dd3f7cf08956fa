"""How much there is to know: `python -m benchmarks.code_size [--root PATH] [--json FILE] [--before FILE] [--verbose]`.

Counts the `lightning_app` of any tree, so that figures from before and after a refactor compare. What is counted:

batch, write, event: files that a step, the write of a memory and a pruning event pass: `code_passes`, which traces
    small fits. Batches are of ArticleGPT, VardaGPT with one AttentionReader, ARTGPT2, VardaGPT with an ARTRegularizer.
shapes of a stored row: dataclasses, NamedTuples and TypedDicts in the files of the memory (`code_counts.IDEAS`) with
    two or more fields that are tensors (or arrays) and have the name of something that a memory keeps of an entry
    (`code_counts.COLUMNS`). The row below drops the condition on names, which a renaming cannot change. Neither sees
    a dict of columns, nor the buffers of a module.
options: `code_options`: arguments that a YAML or the command line can give. Those of the classes that only a group
    called `advanced` can name are in it, too.
imports between folders: statements, and pairs of top-level folders; files beside the folders do not count.
circles of imports: sets of files that import each other in a circle: when they are imported, or with imports within
    functions and for type checkers. An import of a module is one of its file, not of the packages above it.
lines: physical ones; code lines are those with more than a comment or a docstring. A function's lines include its
    docstring.
ideas: their files (`code_counts.IDEAS`, without `__init__.py`), the folders these lie in at any depth and at the top,
    and the statements by which one idea imports another, or a file of no idea imports one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.code_counts import (
    FUNCTIONS,
    IDEAS,
    Tree,
    between_folders,
    circles,
    code_lines,
    crossing,
    function_lengths,
    isinstance_calls,
    of_idea,
    percentile,
    row_shapes,
)

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Count:
    """One row.

    Attributes:
        names: what was counted, for `--verbose`.
    """

    what: str
    value: float
    names: Sequence[str] = ()


def listed(what: str, names: Sequence[str]) -> Count:
    return Count(what, len(names), names)


def script(name: str, root: Path) -> Any:
    """What a script of this folder prints as JSON, run with the code of `root`."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-W", "ignore", str(HERE / f"{name}.py")]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr[-3000:]}\n{name} failed with the code of {root}")
    return json.loads(done.stdout)


def counts(root: Path, *, runs: bool = True) -> Iterator[Count]:
    """Of a tree; without `runs` what needs no import of it."""
    tree = Tree.read(root / "lightning_app")
    if runs:
        yield from of_passes(script("code_passes", root))
    yield from of_rows(tree)
    if runs:
        yield from of_options(script("code_options", root))
    yield from of_sizes(tree, Tree.read(root / "tests"))
    yield from of_imports(tree)
    for idea in IDEAS:
        yield from of_the_idea(tree, idea)
    yield listed("imports of one idea by another", crossing(tree, from_core=False))
    yield listed("imports of an idea by files of none", crossing(tree, from_core=True))


def of_passes(found: Any) -> Iterator[Count]:
    for kind, files in found["batch"].items():
        yield listed(f"files that a batch passes, {kind}", files["all"])
        yield listed(f"files that a batch passes, {kind}, but for hooks of callbacks", files["own"])
    yield listed("files that a memory write passes", found["write"])
    yield listed("files that a pruning event passes, with analysis and evaluation", found["event"]["hook"])
    yield listed("files that a pruning event passes", found["event"]["alone"])
    beyond = sorted(set(found["event"]["alone"]) - set(found["batch"]["plain"]["all"]))
    yield listed("files that a pruning event passes, and a plain batch does not", beyond)


def of_rows(tree: Tree) -> Iterator[Count]:
    yield listed("shapes of a stored row", row_shapes(tree, of_columns=True))
    yield listed("classes of two or more tensors in the memory's files", row_shapes(tree, of_columns=False))


def of_options(found: Any) -> Iterator[Count]:
    by_class = found["options"]
    every = [f"{name}.{option}" for name, options in by_class.items() for option in options]
    yield listed("options", every)
    yield listed("options outside of groups called `advanced`", [o for o in every if o not in found["advanced"]])
    yield listed("options of PlasticitySchedule, but for `advanced`", found["schedule"])
    yield listed("options that are a dict", found["dicts"])
    if found["missing"]:
        yield listed("modules that could not be imported", found["missing"])


def of_sizes(tree: Tree, tests: Tree) -> Iterator[Count]:
    lengths = function_lengths(tree)
    yield Count("files", len(tree.texts))
    yield Count("classes", sum(1 for _ in tree.nodes(ast.ClassDef)))
    yield Count("functions", sum(1 for _ in tree.nodes(*FUNCTIONS)))
    yield Count("lines of a function, median", percentile(lengths, 50))
    yield Count("lines of a function, 90th percentile", percentile(lengths, 90))
    yield Count("isinstance calls", isinstance_calls(tree))
    for name, part in (("package", tree), ("tests", tests)):
        yield Count(f"lines, {name}", sum(len(text.splitlines()) for text in part.texts.values()))
        yield Count(f"code lines, {name}", sum(map(code_lines, part.texts.values())))


def of_imports(tree: Tree) -> Iterator[Count]:
    pairs = between_folders(tree)
    yield Count("imports between folders, statements", pairs.total())
    yield listed("imports between folders, pairs", [f"{a} -> {b}: {n}" for (a, b), n in sorted(pairs.items())])
    for late, when in ((False, "on import"), (True, "with late ones")):
        yield listed(f"circles of imports, {when}", [" - ".join(files) for files in circles(tree, late=late)])


def of_the_idea(tree: Tree, idea: str) -> Iterator[Count]:
    files = of_idea(tree, idea)
    yield listed(f"{idea}: files", files)
    yield listed(f"{idea}: folders", sorted({str(PurePosixPath(file).parent) for file in files}))
    yield listed(f"{idea}: folders at the top", sorted({file.partition("/")[0] for file in files}))


# What is printed


def table(found: Sequence[Count], before: dict[str, Any] | None, *, verbose: bool) -> str:
    """Markdown; with `before` (what `--json` wrote) a column of those figures."""
    old = before or {}
    columns = [["what", "before", "now"] if before else ["what", "now"]]
    for count in found:
        values = [
            count.what,
            *([_number(old.get(count.what, {}).get("value"))] if before else []),
            _number(count.value),
        ]
        columns.append(values)
    rows = ["| " + " | ".join(values) + " |" for values in columns]
    rows.insert(1, "|---" * len(columns[0]) + "|")
    names = [f"{count.what}:\n  " + "\n  ".join(count.names) for count in found if count.names] if verbose else []
    return "\n".join([*rows, *(f"\n{text}" for text in names)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.code_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=HERE.parent, help="whose lightning_app and tests; this tree's")
    parser.add_argument("--json", type=Path, help="write the figures and what they count there")
    parser.add_argument("--before", type=Path, help="what --json wrote earlier: printed beside")
    parser.add_argument("--verbose", action="store_true", help="print the names of what was counted")
    parser.add_argument("--no-runs", action="store_true", help="only what is read from the sources")
    given = parser.parse_args(args)
    before = json.loads(given.before.read_text(encoding="utf-8")) if given.before else None
    found = list(counts(given.root.resolve(), runs=not given.no_runs))
    print(table(found, before, verbose=given.verbose))
    if given.json:
        plain = {count.what: {"value": count.value, "names": list(count.names)} for count in found}
        given.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
