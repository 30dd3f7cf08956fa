"""`python -m tests.golden` writes the expected values; with `compare REV` it runs REV and this tree side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.golden.compare import Difference, compared
from tests.golden.runner import HERE, NAMES, shipped

ROOT = HERE.parent.parent


def run_all(tree: Path, folder: Path, names: Sequence[str] = NAMES) -> subprocess.Popen[bytes]:
    """Runs with the code of a tree, in a process of its own, by this tree's runner and configs."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / "runner.py"), str(folder), *names]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate()[1].decode(errors="replace")
    if process.returncode:
        sys.exit(f"{said}\n{' '.join(map(str, process.args))} failed")  # type: ignore[arg-type]


@contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """A temporary git worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def write() -> None:
    wait_for(run_all(ROOT, HERE / "expected", [*NAMES, *(f"shipped/{name}" for name in shipped.NAMES)]))


def largest(name: str, before: Path, after: Path) -> Difference:
    """The difference of one run that is furthest beyond its limit, or nearest to it."""
    expected, found = (json.loads((folder / f"{name}.json").read_text()) for folder in (before, after))
    return max(compared(expected, found), key=lambda difference: difference.size / max(difference.limit, 1e-12))


def compare(revision: str) -> None:
    with tree_of(revision) as tree, tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        processes = [run_all(tree, Path(a)), run_all(ROOT, Path(b))]
        for process in processes:
            wait_for(process)
        found = {name: largest(name, Path(a), Path(b)) for name in NAMES}
    for name, difference in found.items():
        print(f"{name}: {difference if difference.size else 'no difference'}")
    worst = max(found, key=lambda name: found[name].size)
    print(f"largest difference: {found[worst].size:.1e}, in {worst}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        compare(sys.argv[2])
    else:
        write()
