"""The script that breaks code and asks whether the tests notice, on a tree of three files."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import mutants, mutation_runs
from benchmarks.mutants import Result, drawn, moved
from benchmarks.mutation_runs import Runner, Verdict
from benchmarks.mutation_sites import KINDS, OPERATORS, Mutant, sites, sites_of

SOURCE = '''"""A docstring with 3 numbers."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    LATE = 1

__all__ = ["f"] * 1
Mode = Literal[1, 2]


class Größe:
    """7"""

    size: Literal[3] = 5  # 6

    @decorated(9)
    def f(self, a: int = 2) -> bool:
        """8"""
        assert a != 1
        if a < 3 and not self.g:  # a < 3
            raise ValueError("ä" * 4)
        print(1)
        b = (a) \\
            +  (  # + not this
            1.5)
        return f"{a + 1}" is not b

    @abstractmethod
    def g(self):
        return 1


class Named(Protocol):
    x: int = 1
'''
EXPECTED = [
    ("constant", "Größe", "5", "6"),
    ("constant", "Größe.f", "2", "3"),
    ("branch", "Größe.f", "a < 3 and not self.g", "not (a < 3 and not self.g)"),
    ("operator", "Größe.f", "<", "<="),
    ("constant", "Größe.f", "3", "4"),
    ("operator", "Größe.f", "and", "or"),
    ("operator", "Größe.f", "not", ""),
    ("operator", "Größe.f", "+", "-"),
    ("constant", "Größe.f", "1.5", "2.5"),
    ("return", "Größe.f", 'f"{a + 1}" is not b', 'not (f"{a + 1}" is not b)'),
    ("operator", "Größe.f", "is not", "is"),
]


def test_what_can_be_changed_in_a_file():
    found = sites_of(SOURCE.encode(), "a.py")
    assert [(m.kind, m.qualname, m.before, m.after) for m in found] == EXPECTED
    condition = next(m for m in found if m.before == "<")
    assert (condition.line, condition.number) == ("if a < 3 and not self.g:", 21)


def test_a_mutant_changes_its_span_alone():
    for mutant in sites_of(SOURCE.encode(), "a.py"):
        changed = mutant.applied(SOURCE.encode()).decode()
        ast.parse(changed)
        start = len(SOURCE.encode()[: mutant.start].decode())
        assert changed == SOURCE[:start] + mutant.after + SOURCE[start + len(mutant.before) :]


def test_a_file_that_has_changed_since_is_refused():
    mutant = sites_of(SOURCE.encode(), "a.py")[0]
    with pytest.raises(AssertionError, match=r"a\.py has changed"):
        mutant.applied(b"#" + SOURCE.encode())


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_each_operator_becomes_another_one(operator: type[ast.operator]):
    x, y = ast.Name("x", ast.Load()), ast.Name("y", ast.Load())
    node: ast.expr
    if issubclass(operator, ast.cmpop):
        node = ast.Compare(x, [operator()], [y])
    elif issubclass(operator, ast.boolop):
        node = ast.BoolOp(operator(), [x, y])
    else:
        node = ast.UnaryOp(operator(), x) if issubclass(operator, ast.unaryop) else ast.BinOp(x, operator(), y)
    text = f"z = {ast.unparse(node)}".encode()
    (mutant,) = sites_of(text, "a.py")
    assert ast.dump(ast.parse(mutant.applied(text))) != ast.dump(ast.parse(text))


def test_equal_changes_are_numbered():
    text = b"x = [1, 1]\n"
    assert [(m.nth, m.applied(text)) for m in sites_of(text, "a.py")] == [(0, b"x = [2, 1]\n"), (1, b"x = [1, 2]\n")]


# Which are drawn, and where they are in another tree


def test_a_draw_repeats_and_takes_as_many_of_each_kind():
    found = sites(mutants.ROOT, "benchmarks")
    first = drawn(found, n=12, seed=1)
    assert first == drawn(found, n=12, seed=1)
    assert first != drawn(found, n=12, seed=2)
    assert Counter(mutant.kind for mutant in first) == dict.fromkeys(KINDS, 3)
    assert len(set(first)) == 12


OLD = b"class A:\n    def f(self):\n        return x + 1  # why\n\ndef g():\n    return y - 1\n"


@pytest.mark.parametrize(
    ("new", "number", "how"),
    [
        pytest.param(b"import os\n" + OLD.replace(b"why", b"what for"), 4, "name and line", id="lower down"),
        pytest.param(OLD.replace(b"class A", b"class B"), 3, "last name and line", id="another class"),
        pytest.param(OLD.replace(b"def f", b"def h"), 3, "line", id="another function"),
        pytest.param(OLD.replace(b"x + 1", b"x + 2"), None, "", id="gone"),
        pytest.param(
            OLD.replace(b"def f", b"def h").replace(b"y - 1", b"x + 1"), None, "2 places have the line", id="ambiguous"
        ),
    ],
)
def test_a_mutant_is_found_where_its_code_has_moved(new: bytes, number: int | None, how: str):
    mutant = next(m for m in sites_of(OLD, "old.py") if m.before == "+")
    found, by = moved(mutant, sites_of(new, "folder/new.py"))
    assert (found and (found.number, found.file), by) == (number and (number, "folder/new.py"), how)


# What is run


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "lightning_app/plasticity/entropy.py",
            [["tests/plasticity/test_entropy.py"], ["tests/plasticity", "--ignore=tests/plasticity/test_entropy.py"]],
        ),
        ("lightning_app/plasticity/deep/no_test.py", [["tests/plasticity"]]),
        ("lightning_app/errors.py", [["tests/test_errors.py"], ["tests/test_a.py", "--ignore=tests/test_errors.py"]]),
    ],
)
def test_the_tests_of_a_file(tmp_path: Path, file: str, expected: list[list[str]]):
    (tmp_path / "tests/plasticity").mkdir(parents=True)
    for name in ("plasticity/test_entropy.py", "test_errors.py", "test_a.py"):
        (tmp_path / "tests" / name).touch()
    assert mutation_runs.tests_of(tmp_path, file) == expected
    (tmp_path / "tests/contracts").mkdir()
    assert "tests/contracts" in mutation_runs.tests_of(tmp_path, file)[-1]


FILES = {
    "lightning_app/__init__.py": "",
    "lightning_app/sums.py": "def double(x):\n    return 2 * x\n\ndef unseen(x):\n    return x + 0\n",
    "tests/test_sums.py": (
        "import random\nfrom lightning_app.sums import double\n\n"
        "def test_fails_anyway():\n    assert False\n\n"
        "def test_double():\n    assert double(3) == 6\n"
    ),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "tree", check=True)
    return tmp_path / "tree"


def mutant_of(tree: Path, before: str) -> Mutant:
    return next(mutant for mutant in sites(tree) if mutant.before == before)


@pytest.mark.slow
def test_a_mutant_is_caught_by_a_test_that_passes_without_it(tree: Path):
    runner = Runner(tree, timeout=60)
    caught, survived = runner.verdict(mutant_of(tree, "*")), runner.verdict(mutant_of(tree, "0"))
    assert (caught.status, caught.by) == ("caught", "tests/test_sums.py::test_double")
    assert (survived.status, survived.by) == ("survived", "")
    assert {name: (tree / name).read_text() for name in FILES} == FILES


@pytest.mark.slow
def test_tests_that_take_too_long_are_stopped(tree: Path):
    assert Runner(tree, timeout=0.01).verdict(mutant_of(tree, "*")).status == "timeout"


class Said:
    """Instead of a `Runner`: a status for each mutant, in order; then it stops."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)

    def verdict(self, mutant: Mutant) -> Verdict:
        if not self.statuses:
            raise KeyboardInterrupt
        return Verdict(self.statuses.pop(0), "", 1.0)


def test_results_are_kept_go_on_and_are_asked_for_in_a_later_tree(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file, words = tmp_path / "found.json", ["--root", str(tree), "--n", "4"]
    monkeypatch.setattr(mutants, "KINDS", ("operator", "constant", "return"))
    monkeypatch.setattr(mutants, "Runner", lambda *_, **__: Said("caught", "survived"))
    with pytest.raises(KeyboardInterrupt):
        mutants.main([*words, "--resume", str(file)])
    monkeypatch.setattr(mutants, "Runner", lambda *_, **__: Said("timeout", "caught"))
    mutants.main([*words, "--resume", str(file)])
    stored = [Result.from_json(entry) for entry in json.loads(file.read_text())["mutants"]]
    assert [result.status for result in stored] == ["caught", "survived", "timeout", "caught"]
    assert "survived (equivalent: unknown)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="give another file"):
        mutants.main([*words, "--seed", "1", "--resume", str(file)])

    shutil.move(tree / "lightning_app/sums.py", tree / "lightning_app/products.py")
    monkeypatch.setattr(mutants, "Runner", lambda *_, **__: Said("caught", "survived", "caught"))
    mutants.main(["--root", str(tree), "--apply", str(file)])
    printed = capsys.readouterr().out
    assert printed.count("lightning_app/products.py") == 3  # the one that survived is not asked for
    assert "caught before, and not now: 1" in printed
