"""Two processes train and evaluate as one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def command(*words: object) -> str:
    """`python main.py ...` in a process of its own (its ranks start themselves by this command line)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_ranks_agree_with_one_process(config: Callable[..., str], main: Callable[..., None]):
    overlay = ROOT / "configs" / "overlays" / "ddp.yaml"
    name = config({"data": {"dataloader": {"batch_size": 2}}, "trainer": {"max_steps": 4, "val_check_interval": 4}})
    command("fit", "--config", name, "--config", overlay, "--trainer.accelerator", "cpu")
    run = Path("runs/tiny/version_0")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert records[0]["world_size"] == 2
    (together,) = [r for r in records if "val/ce" in r and "event" not in r]
    main("predict", "--config", name, "--ckpt_path", "last")  # one process, no window twice or left out
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in rows)
    assert together["val/ce"] == pytest.approx(sum(r["ce"] * r["tokens"] for r in rows) / tokens, rel=1e-5)
    random_states = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["RandomState"]
    assert len(random_states["ranks"]) == 2
