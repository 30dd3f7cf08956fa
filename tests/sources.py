"""Sources as trees: all of the package take a second to parse, and several tests look at them."""

from __future__ import annotations

import ast
from functools import cache


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """All nodes of a source, its module first."""
    return tuple(ast.walk(ast.parse(source)))
