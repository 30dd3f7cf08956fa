"""The benchmarks run, at tiny sizes; what they measure is in docs/benchmarks.md."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import PARTS, REPORT, Report

NAMES = [part.__name__ for part in PARTS]


def test_the_report_keeps_what_was_measured_before_a_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "benchmarks.md"
    path.write_text("an older page")
    report = Report(path)
    report.add("# Title")
    assert path.read_text() == "# Title\n"
    report.add("a table")
    assert path.read_text() == "# Title\n\na table\n"
    assert capsys.readouterr().out == "# Title\n\na table\n\n"


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
