"""Imports are declared where they belong, bounds stand in both places alike, and the lock names no machine."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.sources import nodes

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OURS = {"lightning_app", "experiments", "benchmarks", "tests", "main", "site_parts"}
# An extra's packages are imported by these files alone.
FILES_OF_EXTRA = {
    "serve": ("lightning_app/serving/serve.py", "lightning_app/serving/server/"),
    "lora": ("lightning_app/models/adapters.py", "lightning_app/models/lora.py"),
    "gguf": ("lightning_app/export/llama_cpp.py",),
    "onnx": ("lightning_app/export/onnx.py",),
    "experiments": ("experiments/", "lightning_app/data/compressors.py"),
}
NOT_IMPORTED = {  # by lightning_app, and still a user's dependency
    "tensorboard": "Lightning's TensorBoardLogger",
    "accelerate": "transformers.Trainer",
}
NOT_DECLARED = {"litgpt": "`make bench` installs it: its own bounds contradict ours"}


def name_of(requirement: str) -> str:
    """`PyYAML>=6,<7 # why` -> `pyyaml`."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return normal(match[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(path: str) -> list[str]:
    """The lines of a requirements file, without comments."""
    stripped = [line.split(" #")[0].strip() for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]
    return [line for line in stripped if line and not line.startswith("#")]


USER = {name_of(requirement) for requirement in PROJECT["dependencies"]}
NAMES_OF_EXTRA = {extra: {name_of(r) for r in requirements} for extra, requirements in EXTRAS.items()}


@cache
def imports(path: Path) -> frozenset[str]:
    """Names of the top-level packages of others that a file imports, also inside its functions."""
    found = set()
    for node in nodes(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    names = {name.split(".")[0] for name in found} - OURS - sys.stdlib_module_names
    script = not path.with_name("__init__.py").exists()  # imports the files beside it
    return frozenset(name for name in names if not (script and path.with_name(f"{name}.py").exists()))


@pytest.fixture(scope="module")
def distribution() -> dict[str, str]:
    """`sklearn` -> `scikit-learn`, for all that is installed."""
    return {name: normal(found[0]) for name, found in packages_distributions().items()}


def allowed(path: Path) -> set[str]:
    """The distributions that a file may import from."""
    place = str(path.relative_to(ROOT))
    if place.startswith("tests/"):
        return USER.union(*NAMES_OF_EXTRA.values())
    extras = [extra for extra, places in FILES_OF_EXTRA.items() if place.startswith(places)]
    return USER.union(*(NAMES_OF_EXTRA[extra] for extra in extras))


@pytest.mark.parametrize("part", ["lightning_app", "experiments", "benchmarks", "tests"])
def test_each_import_is_declared_where_it_belongs(part: str, distribution: dict[str, str]):
    files = sorted((ROOT / part).rglob("*.py"))
    assert len(files) > 10
    for path in files:
        found = {distribution.get(name, normal(name)) for name in imports(path) - set(NOT_DECLARED)}
        assert found <= allowed(path), f"{path} imports {sorted(found - allowed(path))}: declare it in pyproject.toml"


def test_each_dependency_of_a_user_is_imported(distribution: dict[str, str]):
    names = set().union(*(imports(path) for path in (ROOT / "lightning_app").rglob("*.py")))
    found = {distribution.get(name, normal(name)) for name in names}
    meant = USER.union(*(NAMES_OF_EXTRA[extra] for extra in ("serve", "lora")))
    assert meant - found == set(NOT_IMPORTED)


def test_the_tests_own_packages_come_with_make_test(distribution: dict[str, str]):
    """A file of tests that imports at its top what requirements.txt lacks could not be collected."""
    installed = {name_of(line) for line in lines("requirements.txt")}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        top = path.read_text(encoding="utf-8").split("\n\n\n")[0]  # to parse all files takes 1.5 s
        at_the_top = re.findall(r"^(?:from|import) (\w+)", top, re.MULTILINE)
        names = {*at_the_top} - OURS - sys.stdlib_module_names
        assert {distribution.get(name, normal(name)) for name in names} <= installed, path


def test_bounds_stand_in_both_places_alike():
    project = [*PROJECT["dependencies"], *(r for requirements in EXTRAS.values() for r in requirements)]
    files = [*lines("requirements.txt"), *lines("requirements-dev.txt"), *lines("requirements-docs.txt")]
    assert sorted(project) == sorted(files)
    assert len({name_of(line) for line in files}) == len(files)
    first = {name_of(line) for line in lines("requirements.txt")}
    assert USER.union(*(NAMES_OF_EXTRA[extra] for extra in ("serve", "lora", "experiments"))) <= first


def test_each_bound_has_a_lower_end():
    for line in [*lines("requirements.txt"), *lines("requirements-dev.txt"), *lines("requirements-docs.txt")]:
        assert re.search(r"[>=]=\d", line), line


def locked() -> dict[str, list[str]]:
    """Versions by name, of all Pythons and systems."""
    found: dict[str, list[str]] = {}
    for line in lines("constraints.txt"):
        match = re.fullmatch(r"([\w.-]+)==([\w.!+]+)(?: ; .*)?", line)
        assert match, line
        found.setdefault(match[1], []).append(match[2])
    return found


def test_the_lock_has_all_that_is_asked_for_and_names_no_machine():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for word in ("://", "index", " /"):
        assert word not in text
    assert locked()["torch"] == ["2.13.0"]  # not +cpu: pip takes a local CPU wheel or the CUDA build
    files = ("requirements.txt", "requirements-dev.txt", "requirements-docs.txt")
    asked = {name_of(line) for file in files for line in lines(file)}
    assert asked <= set(locked())
    assert len(locked()) > len(asked) + 50


def test_make_installs_from_the_lock():
    """`make train`, `make test` and `make lint` alike; without it, only what says so."""
    installs = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if " -r " in line]
    assert len(installs) == 5
    assert ["$(LOCKED)" in line for line in installs] == [True, True, True, False, False]
    assert [line for line in installs if "$(LOCKED)" not in line and ".venv-" not in line] == []
    steps = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    assert steps == ["make test", "make lint"]
