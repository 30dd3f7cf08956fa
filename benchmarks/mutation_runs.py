"""Runs the tests that a mutant concerns in a copy of the tree.

Those are, first, the test file of its own name, then the folder of tests that mirrors its folder, then
`tests/contracts`. A test that fails is run once without the mutant: if it fails there, too, it does not count.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from benchmarks.mutation_sites import Mutant

FIRST = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)  # in pytest's summary
COLLECTION = "collection"  # a conftest.py that cannot be imported has no line there
PASSED, FAILED, INTERRUPTED, UNUSABLE, NO_TESTS = 0, 1, 2, 4, 5  # pytest's; 2 and 4: a file could not be imported


@dataclass(frozen=True)
class Verdict:
    """What the tests say of a mutant.

    Attributes:
        status: caught, survived, or timeout.
        by: the test that failed first.
        seconds: of all runs.
    """

    status: str
    by: str
    seconds: float


def tests_of(root: Path, file: str) -> list[list[str]]:
    """What a pytest is given for a file of the package, in the order of the runs: the file's own tests come first."""
    path = PurePosixPath(file)
    folder = PurePosixPath("tests", *path.parent.parts[1:])
    own = f"{folder}/test_{path.stem}.py"
    while not (root / folder).is_dir():
        folder = folder.parent
    further = [str(folder)] if folder != PurePosixPath("tests") else _beside(root)
    if (root / "tests/contracts").is_dir():
        further.append("tests/contracts")
    if not (root / own).is_file():
        return [further]
    return [[own], [*(test for test in further if test != own), f"--ignore={own}"]]


def _beside(root: Path) -> list[str]:
    """Those in no folder, for a file that lies in none: all of tests/ would be the whole suite."""
    return sorted(path.relative_to(root).as_posix() for path in (root / "tests").glob("test_*.py"))


@contextlib.contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A temporary copy of what git knows or would take."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if (root / name).is_file():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, target)
        yield Path(folder)


class Runner:
    """Runs the tests of mutants of one tree.

    Args:
        root: the tree.
        timeout: seconds for the tests of one mutant, and again for those of its own file.

    Raises:
        RuntimeError: pytest cannot even collect the tests of a tree without a mutant.
    """

    def __init__(self, root: Path, *, timeout: float) -> None:
        self.root, self.timeout = root, timeout
        self._sound: dict[str, bool] = {}  # by test: whether it passes without a mutant

    def verdict(self, mutant: Mutant) -> Verdict:
        start, tests = time.monotonic(), tests_of(self.root, mutant.file)
        with copy_of(self.root) as tree:
            path = tree / mutant.file
            path.write_bytes(mutant.applied(path.read_bytes()))
            for part in tests:
                status, by = self._status(tree, part)
                while status == "caught" and not self._is_sound(by, part):
                    status, by = self._status(tree, part)
                if status != "survived":
                    break
        return Verdict(status, by, round(time.monotonic() - start, 1))

    def _status(self, tree: Path, tests: Sequence[str]) -> tuple[str, str]:
        unsound = [word for test, sound in self._sound.items() if not sound for word in ("--deselect", test)]
        ended = pytest_in(tree, ["-x", *tests, *unsound], timeout=self.timeout)
        if ended is None:
            return "timeout", ""
        code, output = ended
        if code in (PASSED, NO_TESTS):
            return "survived", ""
        if code not in (FAILED, INTERRUPTED, UNUSABLE):
            raise RuntimeError(f"pytest ended with {code} on {', '.join(tests)}:\n{output[-2000:]}")
        first = FIRST.search(output)
        return "caught", first[1] if first else COLLECTION

    def _is_sound(self, test: str, tests: Sequence[str]) -> bool:
        if test not in self._sound:
            words = [test] if "::" in test else [*tests, "--collect-only"]
            with copy_of(self.root) as tree:
                ended = pytest_in(tree, words, timeout=self.timeout)
            self._sound[test] = ended is not None and ended[0] == PASSED
            if "::" not in test and not self._sound[test]:
                raise RuntimeError(f"without a mutant, too, pytest cannot collect {', '.join(tests)}")
        return self._sound[test]


def pytest_in(tree: Path, words: Sequence[str], *, timeout: float) -> tuple[int, str] | None:
    """Exit code and output; None: it took longer, and was killed with what it had started."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words]
    with subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
