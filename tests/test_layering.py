"""Imports go one way (README, "How it is laid out")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_app"
EVERYWHERE = {"errors", "io", "utf8", "yaml_file"}
MAY_IMPORT = {
    "reports": {"reports"},
    "ops": {"ops"},
    "models": {"models", "ops", "reports"},
    "training": {"training", "ops", "reports"},
    "text": {"text", "training", "reports"},
    "modules": {"modules", "models", "ops", "text", "training", "reports"},
    "callbacks": {"callbacks", "modules", "models", "ops", "text", "training", "reports"},
    "integrations": {"integrations", "models", "ops"},
    "inference": {"inference", "callbacks", "modules", "models", "ops", "text", "training", "reports"},
}
WITHOUT_LIGHTNING = ("ops", "models", "integrations", "reports")
FILES = sorted(path for part in MAY_IMPORT for path in (PACKAGE / part).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def is_there(module: str) -> bool:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_all_parts_are_looked_at():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(MAY_IMPORT)
    assert len(FILES) > 25


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path):
    part = path.relative_to(PACKAGE).parts[0]
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("lightning_app.")}
    assert ours <= MAY_IMPORT[part] | EVERYWHERE, f"{path} imports {ours - MAY_IMPORT[part] - EVERYWHERE}"
    gone = [name for name in imported(path) if name.startswith("lightning_app.") and not is_there(name)]
    assert gone == [], f"{path} imports what is not there, which mypy takes for a library without types"
    others = {name.split(".")[0] for name in imported(path)}
    assert "pytorch_lightning" not in others
    if part in WITHOUT_LIGHTNING:
        assert "lightning" not in others
    if part == "reports":  # a page is drawn in a second, from a folder that may be a copy on another machine
        assert not others & {"torch", "torchmetrics", "transformers", "faiss"}
