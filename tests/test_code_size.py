"""The script that counts code before and after a refactor: what it counts is what its docstring says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import code_counts, code_passes, code_size
from benchmarks.code_counts import IDEAS, Tree

FILES = {
    "errors.py": "class InputError(ValueError): ...\n",
    "plugins.py": "from lightning_app.memory import bank\n",
    "data/batch.py": "import torch\nfrom lightning_app.errors import InputError\n",
    "models/lora.py": "from lightning_app.models import pretrained\nfrom lightning_app.data.batch import torch\n",
    "models/pretrained.py": '''"""A docstring
of two lines."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_app.data import batch


# A comment.
def load(x):
    """Says
    what."""
    import lightning_app.models.lora

    return isinstance(x, str) or isinstance(x, (
        int,  # code
    ))
''',
    "memory/bank.py": """from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from lightning_app.art.rules import winner


@dataclass(frozen=True)
class Columns:
    tokens: Tensor
    documents: Tensor | None
    size: int


class Found(NamedTuple):
    ids: np.ndarray
    vectors: Tensor


@dataclass
class Weights:
    q: Tensor
    k: Tensor


@dataclass
class One:
    tokens: Tensor
    ids: list[int]


class Plain:
    tokens: Tensor
    vectors: Tensor
""",
    "memory/readers/concat.py": "from ..bank import Columns\nfrom . import attention\n",
    "memory/readers/attention.py": "from lightning_app.memory.readers.concat import Columns\n",
    "memory/readers/__init__.py": "",
    "art/rules.py": "def winner(): ...\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for name, text in FILES.items():
        path = tmp_path / "lightning_app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree.read(tmp_path / "lightning_app")


def test_a_row_shape_has_two_columns_of_tensors(tree: Tree):
    assert [x.partition(" ")[0] for x in code_counts.row_shapes(tree, of_columns=True)] == ["Columns", "Found"]
    every = [x.partition(" ")[0] for x in code_counts.row_shapes(tree, of_columns=False)]
    assert every == ["Columns", "Found", "Weights"]


def test_an_import_between_folders_is_one_of_a_file_in_a_folder(tree: Tree):
    assert code_counts.between_folders(tree) == {
        ("models", "data"): 2,  # one of them for type checkers; errors.py and plugins.py lie beside the folders
        ("memory", "art"): 1,
    }


def test_a_circle_is_one_on_import_or_with_what_is_imported_late(tree: Tree):
    on_import = ["memory/readers/attention.py", "memory/readers/concat.py"]
    assert code_counts.circles(tree, late=False) == [on_import]
    assert code_counts.circles(tree, late=True) == [on_import, ["models/lora.py", "models/pretrained.py"]]


def test_an_idea_is_its_folder_and_the_core_may_not_import_it(tree: Tree):
    readers = ["memory/readers/attention.py", "memory/readers/concat.py"]  # and not their __init__.py
    assert code_counts.of_idea(tree, "memory") == ["memory/bank.py", *readers]
    assert code_counts.crossing(tree, from_core=False) == ["memory/bank.py -> art/rules.py"]
    assert code_counts.crossing(tree, from_core=True) == ["plugins.py -> memory/bank.py"]


def test_lengths_lines_and_calls(tree: Tree):
    assert sorted(code_counts.function_lengths(tree)) == [1, 8]
    assert code_counts.isinstance_calls(tree) == 2
    text = FILES["models/pretrained.py"]
    assert (len(text.splitlines()), code_counts.code_lines(text)) == (18, 8)


@pytest.mark.slow  # it parses all files; what is counted: above
def test_each_idea_has_its_files_in_this_tree():
    ours = Tree.read(code_size.HERE.parent / "lightning_app")
    assert all(len(code_counts.of_idea(ours, idea)) > 3 for idea in IDEAS)
    assert code_counts.row_shapes(ours, of_columns=True)


def test_a_table_has_a_column_for_what_was_before():
    found = [code_size.Count("files", 1200), code_size.listed("classes", ["A", "B"])]
    before = {"files": {"value": 1300, "names": []}}
    printed = code_size.table(found, before, verbose=True)
    assert printed.splitlines() == [
        "| what | before | now |",
        "|---|---|---|",
        "| files | 1,300 | 1,200 |",
        "| classes | - | 2 |",
        "",
        "classes:",
        "  A",
        "  B",
    ]


def test_without_runs_nothing_is_imported(tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code_size.main(["--root", str(tmp_path), "--no-runs", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["files"]["value"] == len(FILES)
    assert f"| files | {len(FILES)} |" in capsys.readouterr().out


# Passes


def module(name: str, text: str, package: Path) -> ModuleType:
    made = ModuleType(name)
    made.__file__ = str(package / f"{name}.py")
    exec(compile(text, made.__file__, "exec"), vars(made))
    return made


def test_a_tracer_notes_files_by_outermost_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(code_passes, "PACKAGE", tmp_path)
    low = module("low", "def add(x):\n    return x.append(1)\n", tmp_path)
    high = module("high", "def write(x, low):\n    low.add(x)\ndef look(x):\n    return len(x)\n", tmp_path)
    other = module("other", "def call(f, *args):\n    return f(*args)\n", tmp_path.parent)
    seen: list[int] = []
    tracer = code_passes.Tracer(root=None)
    monkeypatch.setattr(tracer, "_state", lambda: {"buffers": len(seen)})
    before = sys.getprofile()
    tracer.start()
    other.call(high.write, seen, low)
    other.call(high.look, seen)
    sys.setprofile(before)
    assert [(sorted(call.files), call.changed) for call in tracer.calls] == [
        (["high.py", "low.py"], {"buffers"}),
        (["high.py"], set()),
    ]
    assert code_passes.passed(tracer.calls, lambda call: "buffers" in call.changed) == ["high.py", "low.py"]


def test_a_search_that_found_no_call_fails():
    with pytest.raises(AssertionError, match="no call"):
        code_passes.passed([])


@pytest.mark.slow
def test_the_runs_of_this_tree_write_prune_and_pass_their_own_files(tmp_path: Path):
    code_size.main(["--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    plain, memory, art = (set(found[f"files that a batch passes, {k}"]["names"]) for k in ("plain", "memory", "art"))
    of = {name: code_counts.idea_of(name) for name in plain | memory | art}
    assert not {name for name in plain if of[name] in ("memory", "art")}
    assert sum(of[name] == "memory" for name in memory) > 3
    assert sum(of[name] == "art" for name in art) > 1
    assert {"memory"} <= {of[name] for name in found["files that a memory write passes"]["names"] if name in of}
    pruning = found["files that a pruning event passes"]["names"]
    assert sum(code_counts.idea_of(name) == "plasticity" for name in pruning) > 3
    assert found["options"]["value"] > 100
