"""The keys of a checkpoint are spelt in one file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_app.training import checkpoint_keys
from tests.sources import nodes

PACKAGE = Path(__file__).parents[2] / "lightning_app"
KEYS = {value for name, value in vars(checkpoint_keys).items() if name.isupper()}
GENERIC = {"state_dict", "callbacks", "TextDataModule", "lightning_app", "spikes", "documents", "units", "commit"}
HOLDERS = ("checkpoint", "raw")  # what a checkpoint is called: a string that looks into one is a key of it


def spelt(source: str) -> list[str]:
    """The distinctive keys that are spelt in a source, and all strings by which one looks into a checkpoint."""
    if not any(word in source for word in (*(KEYS - GENERIC), *HOLDERS)):  # to parse it takes longer
        return []
    strings = {text for node in nodes(source) if (text := _string(node)) is not None}
    return sorted(strings & (KEYS - GENERIC) | {text for node in nodes(source) for text in _looked_up(node)})


def _looked_up(node: ast.AST) -> Iterator[str]:
    """Of `checkpoint["x"]`, `checkpoint.get("x")`, `"x" in checkpoint` and `{**checkpoint, "x": ...}` the x."""
    found: list[ast.AST | None] = []
    if isinstance(node, ast.Subscript) and _is_checkpoint(node.value):
        found = [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_checkpoint(node.func.value):
        found = [*node.args[:1]]
    elif isinstance(node, ast.Compare) and any(_is_checkpoint(right) for right in node.comparators):
        found = [node.left]
    elif isinstance(node, ast.Dict) and any(
        k is None and _is_checkpoint(v) for k, v in zip(node.keys, node.values, strict=True)
    ):
        found = [*node.keys]
    yield from (text for part in found if (text := _string(part)) is not None)


def _is_checkpoint(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).rpartition(".")[2] in HOLDERS


def _string(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('x = {"optimizer_states": []}', ["optimizer_states"]),
        ('kinds = {"callbacks": 1}; state["epoch"]', []),
        ('checkpoint["epoch"]', ["epoch"]),
        ('self.checkpoint.get("callbacks", {})', ["callbacks"]),
        ('"units" in raw', ["units"]),
        ('{**checkpoint, "state_dict": 1}', ["state_dict"]),
        ("{**checkpoint, WEIGHTS: checkpoint[WEIGHTS]}", []),
    ],
)
def test_a_spelt_key_is_found(source: str, found: list[str]):
    assert spelt(source) == found


def test_keys_are_spelt_in_one_file():
    files = [path for path in PACKAGE.rglob("*.py") if path != Path(checkpoint_keys.__file__)]
    assert len(files) > 100
    assert len(KEYS) > 20
    assert KEYS > GENERIC
    found = {str(path.relative_to(PACKAGE)): keys for path in files if (keys := spelt(path.read_text()))}
    assert found == {}
