"""The benchmarks run, at tiny sizes; what they measure is in docs/benchmarks.md."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import PARTS, REPORT, Report

NAMES = [part.__name__ for part in PARTS.values()]


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "benchmarks.md"
    report = Report(path)
    for section in ("# Page", "## A\n\n1", "## B\n\n2", "## A\n\n3", "# Other page"):
        report.add(section)
    assert path.read_text() == "# Other page\n\n## A\n\n3\n\n## B\n\n2\n"
    assert "## A\n\n1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_part_runs_quickly_and_writes_nothing(name: str):
    pytest.importorskip("transformers")
    if name.endswith("train_step"):
        pytest.importorskip("litgpt")
    before = REPORT.read_bytes() if REPORT.exists() else None
    command = [sys.executable, "-m", name, "--quick"]
    done = subprocess.run(command, cwd=REPORT.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    tables = 0 if name.endswith("cuda") and not torch.cuda.is_available() else 1
    assert done.stdout.count("\n## ") >= tables
    assert (REPORT.read_bytes() if REPORT.exists() else None) == before
