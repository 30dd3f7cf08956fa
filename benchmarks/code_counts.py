"""What `benchmarks.code_size` counts by `ast`, importing nothing: classes, imports, circles, ideas of a tree."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

# Which files are of an idea: its folder in the layout of design.md, then where they lay before.
IDEAS = {
    "memory": (
        "memory/*",
        *("models/memory*.py", "models/readers/*", "modules/varda_gpt.py", "inference/memory*.py"),
        *("ops/nearness.py", "ops/nonparametric.py"),
    ),
    "art": (
        "art/*",
        *("ops/art.py", "models/art.py", "models/rehearsal.py", "modules/art_gpt2.py", "integrations/hf_trainer.py"),
        *("inference/categories.py", "reporting/categories.py"),
    ),
    "plasticity": (
        *("plasticity/*", "reports/plasticity/*"),
        *("models/heads/*", "models/controller.py"),
        *(f"callbacks/{name}.py" for name in ("plasticity", "controller", "evidence", "learning_rates", "pruner")),
        *(
            "callbacks/dashboard.py",
            *(f"reporting/{name}.py" for name in ("plasticity", "dashboard", "charts", "page")),
        ),
        *(f"ops/{name}.py" for name in ("entropy", "importance", "phases", "pruning", "stabilization")),
    ),
}
# What a memory keeps of an entry, as fields that carry it are called.
COLUMNS = {"vectors", "ids", "slot_ids", "entries", "tokens", "next_tokens", "documents", "positions", "spans"} | {
    *("written", "ages", "used", "uses", "strengths")
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """One statement.

    Attributes:
        of: the file that has it, relative to the package.
        files: of the package, that it names: a module, not the packages above it.
        late: within a function, or for type checkers alone: not run when the file is imported.
    """

    of: str
    files: tuple[str, ...]
    late: bool


@dataclass(frozen=True)
class Tree:
    """The files of a package.

    Attributes:
        folder: the package.
    """

    folder: Path
    texts: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> Tree:
        paths = sorted(folder.rglob("*.py"))
        return cls(folder, {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in paths})

    @cached_property
    def parsed(self) -> dict[str, ast.Module]:
        return {name: ast.parse(text) for name, text in self.texts.items()}

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        for tree in self.parsed.values():
            yield from (node for node in ast.walk(tree) if isinstance(node, kinds))

    @cached_property
    def imports(self) -> list[Import]:
        """All statements that name a file of the package."""
        found = [
            Import(name, self._named(name, node), late)
            for name, tree in self.parsed.items()
            for node, late in _import_nodes(tree)
        ]
        return [statement for statement in found if statement.files]

    def _named(self, importer: str, node: ast.Import | ast.ImportFrom) -> tuple[str, ...]:
        if isinstance(node, ast.Import):
            return tuple(file for alias in node.names if (file := self._file(alias.name)))
        base = (node.module or "").split(".") if node.module else []
        if node.level:
            base = [self.folder.name, *importer.split("/")[: -node.level], *base]
        module = ".".join(base)
        files = [self._file(f"{module}.{alias.name}") or self._file(module) for alias in node.names]
        return tuple(dict.fromkeys(file for file in files if file))

    def _file(self, module: str) -> str | None:
        package, _, rest = module.partition(".")
        stem = rest.replace(".", "/")
        if package != self.folder.name:
            return None
        names = (f"{stem}.py", f"{stem}/__init__.py") if rest else ("__init__.py",)
        return next((name for name in names if name in self.texts), None)


def _import_nodes(tree: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, late
        else:
            yield from _import_nodes(node, late or isinstance(node, FUNCTIONS) or for_type_checkers(node))


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


# Sizes


def function_lengths(tree: Tree) -> list[int]:
    """Lines from `def` to the end, docstring included, nested functions too."""
    return [node.end_lineno - node.lineno + 1 for node in tree.nodes(*FUNCTIONS)]  # type: ignore[attr-defined]


def percentile(values: Iterable[int], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


def isinstance_calls(tree: Tree) -> int:
    calls = [node.func for node in tree.nodes(ast.Call)]  # type: ignore[attr-defined]
    return sum(isinstance(called, ast.Name) and called.id == "isinstance" for called in calls)


def code_lines(text: str) -> int:
    """Lines that hold more than a comment or (part of) a docstring."""
    kept: set[int] = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            kept |= set(range(token.start[0], token.end[0] + 1))
    return len(kept - {line for node in docstrings(ast.parse(text)) for line in _lines(node)})


def docstrings(tree: ast.AST) -> list[ast.expr]:
    owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS))]
    firsts = [node.body[0] for node in owners if ast.get_docstring(node, clean=False) is not None]
    return [first.value for first in firsts if isinstance(first, ast.Expr)]


def _lines(node: ast.expr) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def row_shapes(tree: Tree, *, of_columns: bool) -> list[str]:
    """See `benchmarks.code_size`: classes of the memory's files with two or more tensor fields."""
    found = []
    for name in of_idea(tree, "memory"):
        for node in ast.walk(tree.parsed[name]):
            fields = _tensor_fields(node)
            if len(fields & COLUMNS if of_columns else fields) >= 2:
                found.append(f"{node.name} ({name}): {', '.join(sorted(fields))}")  # type: ignore[attr-defined]
    return found


def _tensor_fields(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.ClassDef):
        return set()
    said = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
    if not any(kind in said for kind in ("dataclass", "NamedTuple", "TypedDict")):
        return set()
    fields = [x for x in node.body if isinstance(x, ast.AnnAssign) and {"Tensor", "ndarray"} & _names(x.annotation)]
    return {ast.unparse(x.target) for x in fields}


def _names(annotation: ast.expr) -> set[str]:
    whole = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return whole | {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}


# Imports


def between_folders(tree: Tree) -> Counter[tuple[str, str]]:
    """How many statements import from one top-level folder to another; files beside the folders do not count."""
    found: Counter[tuple[str, str]] = Counter()
    for statement in tree.imports:
        a = statement.of.partition("/")[0]
        found.update({(a, b.partition("/")[0]) for b in statement.files if "/" in b and "/" in statement.of})
    return Counter({pair: n for pair, n in found.items() if pair[0] != pair[1]})


def circles(tree: Tree, *, late: bool) -> list[list[str]]:
    """Sets of files each of which imports, directly or not, all others of its set (strongly connected components)."""
    graph: dict[str, set[str]] = {name: set() for name in tree.texts}
    for statement in tree.imports:
        if late or not statement.late:
            graph[statement.of] |= set(statement.files) - {statement.of}
    reached = {name: _reached(graph, name) for name in graph}
    sets = {frozenset({a, *(b for b in reached[a] if a in reached[b])}) for a in graph if a in reached[a]}
    return sorted(sorted(files) for files in sets)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


# Ideas


def idea_of(file: str) -> str | None:
    return next((idea for idea, patterns in IDEAS.items() if any(fnmatch(file, p) for p in patterns)), None)


def of_idea(tree: Tree, idea: str) -> list[str]:
    """Its files, but for those that make a folder a package."""
    return [name for name in tree.texts if idea_of(name) == idea and not name.endswith("__init__.py")]


def crossing(tree: Tree, *, from_core: bool) -> list[str]:
    """Statements by which one idea imports another, or a file of no idea imports one."""
    found = []
    for statement in tree.imports:
        a = idea_of(statement.of)
        others = {idea_of(b) for b in statement.files} - {a, None}
        if others and (a is None) == from_core:
            found.append(f"{statement.of} -> {', '.join(statement.files)}")
    return found
