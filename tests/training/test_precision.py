"""A config in bf16 runs in float32 where the CPU would emulate it; the command line's word counts."""

import platform

import pytest
import torch
import yaml

from lightning_app.training import precision
from lightning_app.training.callbacks import throughput
from lightning_app.training.precision import has_fast_bf16, is_slow_here


@pytest.mark.parametrize(("bf16", "amx", "fast"), [(False, False, False), (True, False, True), (False, True, True)])
def test_an_x86_cpu_needs_the_instructions(monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool, fast: bool):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_fast_bf16() == fast
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert has_fast_bf16()


@pytest.mark.parametrize(
    ("wanted", "accelerator", "slow"),
    [("bf16-mixed", "cpu", True), ("bf16-mixed", "gpu", False), ("bf16-true", "cpu", False), ("32-true", "cpu", False)],
)
def test_what_is_slow(monkeypatch: pytest.MonkeyPatch, wanted: str, accelerator: str, slow: bool):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    assert is_slow_here(wanted, accelerator) == slow
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    assert not is_slow_here(wanted, accelerator)


def test_a_run_says_and_saves_what_it_computes_in(folder, config, main, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    monkeypatch.setattr(throughput, "peak_rate", lambda *given: 1e9)  # seconds of bf16 on most CPUs
    path = config({"trainer": {"precision": "bf16-mixed", "max_steps": 3}})
    main("fit", "--config", path)
    main("fit", "--config", path, "--trainer.precision", "bf16-mixed")
    runs = [folder / f"runs/tiny/version_{i}" for i in (0, 1)]
    saved = [yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"] for run in runs]
    assert saved == ["32-true", "bf16-mixed"]
    logs = [(run / "log.jsonl").read_text() for run in runs]
    assert '"precision": "32-true"' in logs[0]
    assert '"precision": "bf16-mixed"' in logs[1]
