"""Where Python code can be broken by a small change, found by `ast`; only the changed span of the text is replaced.

operator: a comparison, an arithmetic, bitwise or boolean operator, `not`, a minus or `~`: another one, or none.
constant: a number plus 1; True for False and False for True. Strings stay.
branch: the condition of `if`, `elif`, `while`, of a conditional expression or a comprehension, negated.
return: None instead of the value; of a function that is said to return a bool the negation.

Left out is what no test can or need notice: docstrings, annotations, decorators, `__all__`, messages (within `raise`,
an f-string, or a call that prints, warns or logs), `assert`, abstract methods, overloads, protocols, what is for type
checkers alone, and `if __name__ == "__main__"`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

KINDS = ("operator", "constant", "branch", "return")
OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.BitXor: (r"\^", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Not: ("not", ""),
    ast.USub: ("-", "+"),
    ast.Invert: ("~", ""),
}  # what stands there, as a pattern, and what is written instead
SAYING = {"print", "warn", "rank_zero_warn", "rank_zero_info", "rank_zero_debug", "debug", "info", "warning", "error"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Mutant:
    """A change of one span.

    What identifies it wherever the code lies: `kind`, `qualname`, `line`, `before`, `after` and `nth`.

    Attributes:
        qualname: of the innermost function or class, `<module>` outside of them.
        line: the text in which the span begins, without indentation and comment.
        before, after: the span, and what is written instead.
        nth: from 0, among those of the file that are equal in all the above.
        file: relative to the tree.
        number: of the line, from 1.
        start, end: the span in the bytes of the file.
    """

    kind: str
    qualname: str
    line: str
    before: str
    after: str
    nth: int
    file: str
    number: int
    start: int
    end: int

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.qualname, self.line, self.before, self.after

    def applied(self, text: bytes) -> bytes:
        found = text[self.start : self.end].decode(errors="replace")
        assert found == self.before, f"{self.file} has changed: {found!r} stands where {self.before!r} was"
        return text[: self.start] + self.after.encode() + text[self.end :]


def sites(root: Path, package: str = "lightning_app") -> list[Mutant]:
    """All of a tree, by file and place."""
    paths = sorted((root / package).rglob("*.py"))
    return [site for path in paths for site in sites_of(path.read_bytes(), path.relative_to(root).as_posix())]


def sites_of(text: bytes, file: str) -> list[Mutant]:
    """Those of a file, each with its `nth`."""
    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    for site in sorted(_Finder(text, file).found(), key=lambda site: (site.start, site.end)):
        found.append(replace(site, nth=seen[site.key]))
        seen[site.key] += 1
    return found


class _Finder:
    """Walks the tree of a file with the names of the classes and functions around."""

    def __init__(self, text: bytes, file: str) -> None:
        self.text, self.file = text, file
        lines = text.split(b"\n")
        self.starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
        ends = _comments(text)
        self.lines = [line.decode()[: ends.get(i)].strip() for i, line in enumerate(lines, 1)]

    def found(self) -> Iterator[Mutant]:
        yield from self._walk(ast.parse(self.text), ())

    def _walk(self, node: ast.AST, names: tuple[str, ...], returns: ast.expr | None = None) -> Iterator[Mutant]:
        if _is_left_out(node):
            return
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names, returns = (*names, node.name), getattr(node, "returns", None)
        for kind, start, end, after in self._changes(node, returns):
            yield self._mutant(kind, start, end, after, names)
        for child in _children(node):
            yield from self._walk(child, names, returns)

    def _mutant(self, kind: str, start: int, end: int, after: str, names: tuple[str, ...]) -> Mutant:
        number = self.text.count(b"\n", 0, start) + 1
        before, qualname = self.text[start:end].decode(), ".".join(names) or "<module>"
        return Mutant(kind, qualname, self.lines[number - 1], before, after, 0, self.file, number, start, end)

    def _changes(self, node: ast.AST, returns: ast.expr | None) -> Iterator[tuple[str, int, int, str]]:
        """Kind, start, end and new text of what can be changed in a node itself."""
        if isinstance(node, ast.Constant) and (changed := _other_constant(node.value)):
            yield "constant", *self._span(node), changed
        for operator, start, end in self._operators(node):
            pattern, after = OPERATORS[type(operator)]
            match = re.search(pattern.encode(), _without_comments(self.text[start:end]))
            assert match, (self.file, self.text[start:end])
            yield "operator", start + match.start(), start + match.end(), after
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield "branch", *self._span(node.test), self._negated(node.test)
        if isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield "branch", *self._span(test), self._negated(test)
        if isinstance(node, ast.Return) and node.value is not None and not _is_plain(node.value):
            says_bool = isinstance(returns, ast.Name) and returns.id == "bool"
            yield "return", *self._span(node.value), self._negated(node.value) if says_bool else "None"

    def _operators(self, node: ast.AST) -> Iterator[tuple[ast.AST, int, int]]:
        """Each operator of a node that can be changed, and between which bytes it stands."""
        if isinstance(node, ast.Compare):
            parts, operators = [node.left, *node.comparators], list[ast.AST](node.ops)
        elif isinstance(node, ast.BoolOp):
            parts, operators = node.values, [node.op] * (len(node.values) - 1)
        elif isinstance(node, ast.BinOp):
            parts, operators = [node.left, node.right], [node.op]
        elif isinstance(node, ast.AugAssign):
            parts, operators = [node.target, node.value], [node.op]
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
            yield from self._known(node.op, self._span(node)[0], self._span(node.operand)[0])
            return
        else:
            return
        for i, operator in enumerate(operators):
            yield from self._known(operator, self._span(parts[i])[1], self._span(parts[i + 1])[0])

    def _known(self, operator: ast.AST, start: int, end: int) -> Iterator[tuple[ast.AST, int, int]]:
        if type(operator) in OPERATORS:
            yield operator, start, end

    def _span(self, node: ast.expr) -> tuple[int, int]:
        """In bytes, which is what `ast` counts columns in."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _negated(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return f"not ({self.text[start:end].decode()})"


def _comments(text: bytes) -> dict[int, int]:
    """The column at which a line's comment begins, in characters."""
    tokens = tokenize.tokenize(io.BytesIO(text).readline)
    return {token.start[0]: token.start[1] for token in tokens if token.type == tokenize.COMMENT}


def _without_comments(text: bytes) -> bytes:
    return re.sub(rb"#[^\n]*", lambda match: b" " * len(match[0]), text)


def _other_constant(value: object) -> str | None:
    if isinstance(value, bool):
        return str(not value)
    return repr(value + 1) if isinstance(value, int | float) else None


def _is_plain(node: ast.expr) -> bool:
    """None, True or False, which the other kinds deal with."""
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):  # in f-strings Python 3.11 counts positions wrongly
        return True
    if isinstance(node, FUNCTIONS):
        return bool({"abstractmethod", "overload"} & set(_last_names(node.decorator_list)))
    if isinstance(node, ast.ClassDef):
        return "Protocol" in _last_names(node.bases)
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return test.endswith("TYPE_CHECKING") or test.startswith("__name__ ")
    if isinstance(node, ast.Assign):
        return "__all__" in map(ast.unparse, node.targets)
    if isinstance(node, ast.Subscript):
        return "Literal" in _last_names([node.value])
    return isinstance(node, ast.Call) and bool(SAYING & set(_last_names([node.func])))


def _last_names(nodes: Iterable[ast.expr]) -> list[str]:
    """`abstractmethod` of `@abc.abstractmethod`, `Generic` of `Generic[T]`."""
    return [ast.unparse(node).partition("[")[0].partition("(")[0].rpartition(".")[2] for node in nodes]


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Without annotations and decorators."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child
