"""Imports go one way (docs/architecture.md), and in no circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import nodes

PACKAGE = Path(__file__).parent.parent / "lightning_app"
EVERYWHERE = {
    "duration",
    "errors",
    "former",
    "io",
    "plugins",
    "program",
    "pulse",
    "shipped",
    "streams",
    "utf8",
    "yaml_file",
}
CORE = ["reports", "data", "models", "training"]  # each imports those before it
IDEAS = ["memory", "art", "plasticity"]
ABOVE = ["export", "serving", "compression"]
MAY_IMPORT = (
    {part: {*CORE[: i + 1]} for i, part in enumerate(CORE)}
    | {idea: {*CORE, idea} for idea in IDEAS}
    | {part: {*CORE, *IDEAS, *ABOVE} for part in ABOVE}
    | {"schema": {"app", "cli_checks", "option_checks", "optimizer_list", "schema"}}
)
WITHOUT_LIGHTNING = ("reports", "models")
FILES = sorted(path for part in MAY_IMPORT for path in (PACKAGE / part).rglob("*.py"))


def imported(path: Path) -> set[str]:
    return imported_from(path.read_text())


def imported_from(source: str) -> set[str]:
    found = set()
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            found.add(node.module or "")
    return found


def name_of(path: Path) -> str:
    """ "models.heads" of models/heads/__init__.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def is_there(module: str) -> bool:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_all_parts_are_looked_at():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(MAY_IMPORT)
    assert len(FILES) > 25


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str):
    for path in (path for path in FILES if path.relative_to(PACKAGE).parts[0] == part):
        check_imports(path, part)


def check_imports(path: Path, part: str) -> None:
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("lightning_app.")}
    assert ours <= MAY_IMPORT[part] | EVERYWHERE, f"{path} imports {ours - MAY_IMPORT[part] - EVERYWHERE}"
    if path.parent.name == "report":
        assert ours <= {"reports", part} | EVERYWHERE, path
        within = {name for name in imported(path) if name.startswith(f"lightning_app.{part}")}
        assert all(name.startswith(f"lightning_app.{part}.report") for name in within), path
    gone = [name for name in imported(path) if name.startswith("lightning_app.") and not is_there(name)]
    assert gone == [], f"{path} imports what is not there, which mypy takes for a library without types"
    others = {name.split(".")[0] for name in imported(path)}
    assert "pytorch_lightning" not in others, path
    if part in WITHOUT_LIGHTNING:
        assert "lightning" not in others, path
    if part == "reports" or path.parent.name == "report":  # a page is drawn in a second, on any machine
        assert not others & {"torch", "torchmetrics", "transformers", "faiss", "lightning"}, path


# Pure mathematics: tensors (or numbers) in, tensors out


PURE = "# Pure mathematics: see tests/test_layering.py."
MARKED = [path for path in FILES if PURE in path.read_text().splitlines()]
OF_PURE = {"abc", "collections.abc", "dataclasses", "functools", "math", "typing", "numpy", "__future__"} | {
    *("torch", "torch.nn.functional", "torch.autograd.function", "lightning_app.errors")
}


def impurities(source: str, marked: set[str]) -> list[str]:
    """What a file of pure mathematics may not have: other imports, modules (nn.Module) and optimizers, ranks."""
    allowed = OF_PURE | {f"lightning_app.{name}" for name in marked}
    found = [name for name in imported_from(source) if name not in allowed]
    found += [f"torch.{alias.name}" for node in nodes(source) for alias in _of_torch(node) if alias.name in STATEFUL]
    return found + [ast.unparse(node) for node in nodes(source) if _names_stateful(node)]


STATEFUL = {"nn", "optim", "distributed", "utils"}


def _of_torch(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.ImportFrom) and node.module == "torch" else []


def _names_stateful(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in {f"torch.{name}" for name in STATEFUL}


def test_impurities_are_found():
    assert impurities("import torch\nfrom torch import Tensor\nimport torch.nn.functional as F", set()) == []
    assert impurities("from lightning_app.models.losses import IGNORE", {"models.losses"}) == []
    assert impurities("from lightning_app.models.losses import IGNORE", set()) == ["lightning_app.models.losses"]
    assert impurities("import lightning as L\nfrom torch import nn", set()) == ["lightning", "torch.nn"]
    assert impurities("class A(torch.nn.Module): ...", set()) == ["torch.nn"]
    assert impurities("torch.distributed.barrier()", set()) == ["torch.distributed"]


@pytest.mark.parametrize("path", MARKED, ids=name_of)
def test_pure_mathematics_stays_pure(path: Path):
    assert impurities(path.read_text(), {name_of(path) for path in MARKED}) == []


def test_what_is_pure_mathematics():
    """Whoever moves one of these moves its line along."""
    assert {name_of(path) for path in MARKED} >= {
        *("art.rules", "memory.knn", "memory.nearness", "models.losses", "models.sampling", "models.weighing"),
        *(f"plasticity.{name}" for name in ("entropy", "phases", "pruning", "scores", "stabilization")),
        "training.spike_rule",
    }


# Circles of files


def run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those within functions too, but for what a type checker alone looks at."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield node
            yield from run_nodes(node)


def files_imported(source: str, files: set[str]) -> set[str]:
    found: set[str] = set()
    for node in run_nodes(nodes(source)[0]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("lightning_app.") for name in found} & files


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Files that reach each other; the graph has the files that each imports."""
    reached = {name: set(imports) for name, imports in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted((set(circle) for circle in found if circle), key=sorted)


def test_a_circle_is_found():
    lazy = "def f():\n    from lightning_app import b"
    typed = "if typing.TYPE_CHECKING:\n    import lightning_app.a\nfrom lightning_app.c.d import e"
    graph = {"a": files_imported(lazy, {"a", "b", "c.d"}), "b": files_imported(typed, {"a", "b", "c.d"}), "c.d": set()}
    assert graph == {"a": {"b"}, "b": {"c.d"}, "c.d": set()}
    assert circles(graph) == []
    assert circles({**graph, "c.d": {"a"}, "e": {"a"}}) == [{"a", "b", "c.d"}]


def test_no_circles():
    sources = {name_of(path): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert len(sources) > 100
    assert circles({name: files_imported(source, set(sources)) for name, source in sources.items()}) == []
