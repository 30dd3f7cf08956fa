"""examples/first_run.ipynb runs from its first cell to its last, and is committed without what it printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"
THERE = ("main.py", "lightning_app", "configs", "data")
SECONDS = 900  # three minutes on two cores that are free; a test may share them


def test_outputs_are_stripped_and_colab_is_said_not_to_be_tried():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert "not tried on Colab" in "".join(cells[0]["source"])


@pytest.mark.slow
def test_it_trains_generates_remembers_and_draws_a_page(tmp_path: Path):
    nbformat = pytest.importorskip("nbformat", reason="`make setup` installs it")
    nbclient = pytest.importorskip("nbclient", reason="`make setup` installs it")
    pytest.importorskip("ipykernel", reason="`make setup` installs it")
    for name in THERE:
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    fitted, samples, scores, _, searched, _ = [
        "".join(output.get("text", "") for output in cell.outputs) for cell in code[1:]
    ]
    assert re.search(r"bits per byte +\d", fitted)
    assert samples.count("\n\n") > 1
    known, foreign = [float(line.split()[0]) for line in scores.splitlines() if re.match(r"\d+\.\d\d  ", line)]
    assert 0 < known < foreign
    assert "entries, nearest first" in searched
    assert (tmp_path / "notebook.html").stat().st_size > 10_000
    assert (tmp_path / "runs/notebook/version_0/checkpoints/best-memory.ckpt").exists()
