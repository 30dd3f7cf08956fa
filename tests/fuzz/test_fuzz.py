"""A small sample of `python -m tests.fuzz`, and that it finds what it is for."""

import random
from pathlib import Path

import pytest
import torch

from lightning_app.training import checkpoint_io
from tests.fuzz.__main__ import fuzz, table
from tests.fuzz.damage import damaged
from tests.fuzz.registry import FAILURES, KINDS, REFUSED, SILENT, TRACEBACK, Case


def test_no_damage_passes_unnoticed(capsys: pytest.CaptureFixture[str]):
    results = fuzz(140, seed=1, kinds=list(KINDS))
    assert len(results) >= 7
    failures = [failure for result in results.values() for failure in result.failures]
    assert not failures, "\n".join(failures)
    assert results["checkpoint"].counts[REFUSED] >= 15
    assert "checkpoint" in table(results)


def outcomes(case: Case, n: int = 40) -> set[str]:
    return {case(random.Random(seed)).name for seed in range(n)}


def test_it_finds_a_flip_that_nobody_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the sums of the parts `torch.load` returns whatever bits there are."""
    path = tmp_path / "a.ckpt"
    torch.save({"weights": torch.arange(10_000)}, path)
    case = damaged([path], lambda draw: checkpoint_io.read_checkpoint(path)["weights"].tolist())
    assert not outcomes(case) & set(FAILURES)
    monkeypatch.setattr(checkpoint_io, "_check_sums", lambda *arguments: None)
    assert SILENT in outcomes(case)


def test_it_finds_a_traceback(tmp_path: Path):
    path = tmp_path / "number"
    path.write_text("1024")
    assert outcomes(damaged([path], lambda draw: int(path.read_text()))) >= {TRACEBACK, SILENT}
