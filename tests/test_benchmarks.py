"""The benchmarks run, at tiny sizes; what they measure is in docs/benchmarks.md."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cuda, dry_run
from benchmarks.__main__ import PARTS, REPORT, Report
from benchmarks.common import Timings
from benchmarks.train_step import TINY

NAMES = [part.__name__ for part in PARTS.values()]


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "benchmarks.md"
    report = Report(path)
    for section in ("# Page", "## A\n\n1", "## B\n\n2", "## A\n\n3", "# Other page"):
        report.add(section)
    assert path.read_text() == "# Other page\n\n## A\n\n3\n\n## B\n\n2\n"
    assert "## A\n\n1" in capsys.readouterr().out


def measured(seconds: dict[str, float], *, rate: float, rounds: int) -> Timings:
    """What five sides of the benchmark on a GPU would give, each at one speed and with the same loss."""
    results = {name: [(s, 5.0)] * rounds for name, s in seconds.items()}
    return Timings({}, {**results, "limit": [rate] * rounds})


def test_a_share_of_the_matmul_limit_is_flops_over_time_and_rate(monkeypatch: pytest.MonkeyPatch):
    seconds = {"ours": 0.2, "ours, compiled": 0.1, "hf": 0.4, "hf, compiled": 0.2}
    rate = TINY.flops() / 0.05  # at the limit a step would take 0.05 s
    monkeypatch.setattr(cuda, "compare", lambda *_, **__: measured(seconds, rate=rate, rounds=7))
    rows = {row.name: row for row in cuda.rows(TINY, device="cpu", quick=False)}
    shares = {name: rows[f"{name}: share of the matmul limit"] for name in seconds}
    assert {name: row.value for name, row in shares.items()} == {
        "ours": "25.00 %",
        "ours, compiled": "50.00 %",
        "hf": "12.50 %",
        "hf, compiled": "25.00 %",
    }
    assert {name: (row.target, row.met) for name, row in shares.items() if row.target} == {
        "ours, compiled": (">= 40 %", True)
    }
    assert rows["ours, compiled: tokens/s"].value == f"{TINY.tokens / 0.1:,.0f}"


def test_other_losses_are_no_other_speed(monkeypatch: pytest.MonkeyPatch):
    found = measured({"ours": 0.2, "hf": 0.2}, rate=1e9, rounds=2)
    found.results["hf"] = [(0.2, 5.5)] * 2
    monkeypatch.setattr(cuda, "compare", lambda *_, **__: found)
    with pytest.raises(AssertionError, match=r"the losses differ by 0\.5"):
        cuda.rows(TINY, device="cpu", quick=True)


def test_its_training_step_runs_and_learns_on_any_device():
    run = cuda.training("ours", TINY, compiled=False, steps=1, device="cpu")
    losses = [run()[1] for _ in range(12)]
    assert losses[0] == pytest.approx(math.log(TINY.vocab_size), rel=0.05)
    assert losses[-1] < losses[0]


def test_what_a_dry_run_foretells_of_the_repeated_part():
    """Half of the steps lie behind the first line of the log."""
    said = """time to the end  9:09 (549.0 s): 1,000 batches of 300.0 ms, 3 validations of 5.00 s, 7 checkpoints of 100.0 ms, start and end 65.99 s
peak memory      863.6 MB of this process"""  # noqa: E501
    assert dry_run.foretold(said, share=0.5).repeated == pytest.approx(549 - 65.99 - 150)


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.tables() == []
    assert capsys.readouterr().err == f"{cuda.NO_GPU}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_part_runs_quickly_and_writes_nothing(name: str):
    if name.endswith("train_step"):
        pytest.importorskip("litgpt")
    before = REPORT.read_bytes() if REPORT.exists() else None
    command = [sys.executable, "-m", name, "--quick"]
    done = subprocess.run(command, cwd=REPORT.parent.parent, capture_output=True, text=True)
    if name.endswith("cuda") and not torch.cuda.is_available():
        assert (done.returncode, done.stderr) == (1, f"error: {cuda.NO_GPU}\n")
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("\n## ") >= 1
    assert (REPORT.read_bytes() if REPORT.exists() else None) == before
