"""Deprecations inside a library are counted, by both of xdist's workers; ours are errors."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.library_news import line_of

ROOT = Path(__file__).parent.parent
OLD = "FutureWarning in somelib: old since 2.9, see PATH, N and ADDRESS"
LIBRARY = """
import warnings

def old(number):
    warnings.warn(f"old since 2.9, see /tmp/a{number}/b.txt, {number} and {hex(id(number))}", FutureWarning)

def calling():
    warnings.warn("the caller is to change", DeprecationWarning, stacklevel=2)

def plain():
    warnings.warn("no deprecation")
"""
CONFTEST = "from tests.library_news import pytest_addoption, pytest_configure\n"
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Done]:
    """`run("somelib.old(1)", "somelib.old(2)", mode="check")`: a test file for each call, on two processes."""
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/somelib.py").write_text(LIBRARY)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")

    def go(*calls: str, mode: str, processes: int = 0) -> Done:
        for i, call in enumerate(calls):
            (tmp_path / f"test_{i}.py").write_text(f"import somelib, pytest\ndef test(): {call}\n")
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site-packages'}{os.pathsep}{ROOT}"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take seconds
        words = ("-p", "xdist", "-n", str(processes), "-p", "no:cacheprovider", f"--library-news={mode}")
        words += ("--library-news-file", str(tmp_path / "news.txt"), "--disable-warnings")
        command = [sys.executable, "-m", "pytest", *words, str(tmp_path)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)

    return go


@pytest.mark.slow  # `make test-newest` does what it does
def test_a_new_line_fails_a_check_and_is_written(run: Callable[..., Done], tmp_path: Path):
    calls = ("somelib.old(1000)", "[somelib.old(n) for n in (2000, 3000)]")
    checked = run(*calls, mode="check")
    assert checked.returncode == 1
    assert f"not in news.txt: {OLD}" in checked.stdout
    assert run(*calls, mode="write", processes=2).returncode == 0
    assert (tmp_path / "news.txt").read_text() == f"     3 {OLD}\n"
    known = run(*calls, mode="check")
    assert known.returncode == 0
    assert "not in news.txt" not in known.stdout


@pytest.mark.parametrize("call", ["somelib.calling()", "somelib.plain()"])
def test_what_is_ours_to_change_and_any_other_warning_is_an_error(run: Callable[..., Done], call: str):
    done = run(call, mode="show")
    assert done.returncode == 1
    assert "1 failed" in done.stdout


def test_what_a_recording_block_hands_on_is_still_the_librarys(run: Callable[..., Done]):
    """pytest.warns raises what it did not look for again, under the file's path for a module's name."""
    done = run("exec('with pytest.warns(UserWarning): somelib.plain(); somelib.old(1000)')", mode="check")
    assert done.returncode == 1
    assert f"not in news.txt: {OLD}" in done.stdout
    assert "1 passed" in done.stdout


def test_lines_are_the_same_on_each_machine():
    path = "/home/me/.venv/lib/python3.11/site-packages/torch/utils/_pytree.py"
    assert line_of(FutureWarning, "use\n  b, not  a", path) == "FutureWarning in torch: use b, not a"
    assert line_of(DeprecationWarning, "process (pid=1234) forks", "/usr/lib/python3.12/os.py") == (
        "DeprecationWarning in python: process (pid=N) forks"
    )


OF_LIBRARIES = {  # all that tests may ignore: warnings of numpy on empty slices, of Python on forks, of pytest itself
    *("ignore:Polyfit", "ignore:invalid value", "ignore:Mean of empty"),
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore:Checkpoint directory .* exists and is not empty",  # Lightning's, in test_best_checkpoint.py
    "ignore",  # lm_eval's own, in test_export_tools.py
    "ignore::UserWarning",  # shipped configs in small, in golden/test_golden.py
}


def test_no_filter_names_anything_of_ours():
    marks = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "filterwarnings" in text else ():  # all files take 2 s
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.filterwarnings"):
                marks += [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    assert len(marks) > 3
    assert set(marks) <= OF_LIBRARIES
