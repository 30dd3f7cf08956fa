"""Nothing else leans on Lightning's inside, and what does says in which version it was seen."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging

import lightning_app
from lightning_app.training import lightning_internals
from lightning_app.training.lightning_internals.averaging import Averaging
from tests import sources

PACKAGE = Path(lightning_app.__file__).parent
PLACE = PACKAGE / "training" / "lightning_internals"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if PLACE not in path.parents)
NAMES = re.compile(r"\b(?:self|cls)\.(_[a-z]\w*)|\bdef (_[a-z]\w*)")
WATCHERS = vars(EarlyStopping("x")).keys() | vars(ModelCheckpoint()).keys()
# with subclasses of Lightning's
SUBCLASSES = ("training", "data", "memory", "art", "plasticity", "app", "trainer_parts", "build_errors")


def private_names(source: str) -> set[str]:
    return {a or b for a, b in NAMES.findall(source)}


@cache
def lightnings_names() -> set[str]:
    """Attributes and methods with an underscore, but for those that it has from torch."""
    folder = Path(lightning.__file__).parent
    sources = [path for part in ("pytorch", "fabric") for path in (folder / part).rglob("*.py")]
    found = set().union(*(private_names(path.read_text(encoding="utf-8")) for path in sources))
    return found - set(dir(torch.nn.Module()))


@pytest.fixture(scope="module")
def nodes() -> dict[str, Sequence[ast.AST]]:
    files = [*FILES, *PLACE.glob("*.py")]
    return {str(path.relative_to(PACKAGE)): sources.nodes(path.read_text("utf-8")) for path in files}


def touched(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """What a file reads or writes of Lightning's inside, in objects that are not its own."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in lightnings_names():
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("lightning."):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))


def test_what_leans_is_found():
    lines = (
        "from lightning.pytorch.loops import _FitLoop",
        "trainer._logger_connector",
        "super()._run_subcommand(x)",
        "self._own",
        "other._own_name",
    )
    assert list(touched(ast.walk(ast.parse("\n".join(lines))))) == [
        "_FitLoop",
        "trainer._logger_connector",
        "super()._run_subcommand",
    ]


def test_no_other_file_leans_on_lightnings_inside(nodes: dict[str, Sequence[ast.AST]]):
    assert len(FILES) > 150
    found = {str(path.relative_to(PACKAGE)): list(touched(nodes[str(path.relative_to(PACKAGE))])) for path in FILES}
    assert len(list(touched(nodes["training/lightning_internals/fit_loop.py"]))) > 8
    assert {name: names for name, names in found.items() if names} == {}


def looks_for_callbacks(nodes: Iterable[ast.AST]) -> list[str]:
    """Where a trainer's callbacks are read."""
    found = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "callbacks"]
    return [ast.unparse(node) for node in found if ast.unparse(node.value).rpartition(".")[2] == "trainer"]


def sets_of_watchers(nodes: Iterable[ast.AST]) -> list[str]:
    """Attributes of other objects that are set, of a name that an EarlyStopping or a ModelCheckpoint has."""
    found = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return [ast.unparse(x) for x in found if x.attr in WATCHERS and ast.unparse(x.value) != "self"]


def test_one_file_looks_for_callbacks_and_changes_lightnings(nodes: dict[str, Sequence[ast.AST]]):
    """A callback is given another one, or both meet in the `RunContext`; the harness puts them in order."""
    own = "training/lightning_internals/callbacks.py"
    assert {name for name, of_file in nodes.items() if looks_for_callbacks(of_file)} == {
        own,
        "app.py",
        "short_run.py",  # a harness, too
        "data/accumulation.py",
    }
    found = {name: sets for name, of_file in nodes.items() if (sets := sets_of_watchers(of_file))}
    assert len(found.pop(own)) > 5
    assert found == {"app.py": ["trainer.profiler.dirpath"]}


def own_subclasses() -> Iterator[type]:
    for found in pkgutil.walk_packages(lightning_app.__path__, "lightning_app."):
        if found.name.split(".")[1] in SUBCLASSES and not found.name.startswith(lightning_internals.__name__):
            module = importlib.import_module(found.name)
            own = (cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__)
            yield from (cls for cls in own if any(base.__module__.startswith("lightning.") for base in cls.__mro__))


@cache
def names_in(cls: type) -> set[str]:
    """Names with an underscore that a class defines or uses."""
    functions = [inspect.unwrap(getattr(x, "fget", None) or getattr(x, "__func__", x)) for x in vars(cls).values()]
    code = [function.__code__ for function in functions if inspect.isfunction(function)]
    used = {name for one in code for inner in (one, *one.co_consts) for name in getattr(inner, "co_names", ())}
    return {name for name in used | vars(cls).keys() if name.startswith("_") and not name.startswith("__")}


def test_no_subclass_uses_a_name_of_its_base_by_intention_or_by_accident():
    assert {"_average_model", "_kwargs"} <= names_in(Averaging) & names_in(WeightAveraging)
    classes = list(own_subclasses())
    assert len(classes) > 25
    clashes = set()
    for cls in classes:
        bases = [base for base in cls.__mro__ if base.__module__.startswith("lightning.")]
        theirs = set().union(*(names_in(base) for base in bases)) & lightnings_names()
        clashes |= {f"{cls.__name__}.{name}" for name in names_in(cls) & theirs}
    assert clashes == set()


@pytest.mark.parametrize("path", sorted(PLACE.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_each_function_names_the_version_that_it_was_seen_in(path: Path):
    public = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert public
    told = {node.name: ast.get_docstring(node) or "" for node in public}
    assert [name for name, text in told.items() if not re.search(r"(Lightning|torch) 2\.\d+", text)] == []
