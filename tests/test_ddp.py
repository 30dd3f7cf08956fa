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


def test_two_ranks_learn_what_one_process_learns_from_batches_of_twice_the_size(
    config: Callable[..., str], main: Callable[..., None]
):
    overlay = ROOT / "configs" / "overlays" / "ddp.yaml"
    plain = {"data": {"val": {"max_samples": 7}}, "model": {"init_args": {"backbone": {"dropout": 0.0}}}}
    one = config({**plain, "name": "one"}, "one.yaml")
    plain["data"]["dataloader"] = {"batch_size": 2}
    two = config({**plain, "name": "two"}, "two.yaml")
    main("fit", "--config", one)
    command("fit", "--config", two, "--config", overlay, "--trainer.accelerator", "cpu")
    found = []
    for name in ("one", "two"):
        run = Path(f"runs/{name}/version_0")
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        # 7 windows: 4 on one rank, 3 on the other
        measures = [r for r in records if "val/ce" in r and "event" not in r]
        found.append((torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"], measures))
    (weights, alone), (others, together) = found
    for name in weights:
        assert torch.allclose(weights[name], others[name], atol=1e-5), name
    for measure in ("val/ce", "val/bpb", "val/acc", "val/f1"):
        assert [r[measure] for r in alone] == pytest.approx([r[measure] for r in together], rel=1e-4), measure


@pytest.mark.slow
def test_two_ranks_agree_with_one_process(config: Callable[..., str], main: Callable[..., None]):
    overlay = ROOT / "configs" / "overlays" / "ddp.yaml"
    name = config({"data": {"dataloader": {"batch_size": 2}}, "trainer": {"max_steps": 4, "val_check_interval": 4}})
    command("fit", "--config", name, "--config", overlay, "--trainer.accelerator", "cpu")
    run = Path("runs/tiny/version_0")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert next(r for r in records if r.get("event") == "started")["world_size"] == 2
    (together,) = [r for r in records if "val/ce" in r and "event" not in r]
    main("predict", "--config", name, "--ckpt_path", "last")  # one process, no window twice or left out
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in rows)
    assert together["val/ce"] == pytest.approx(sum(r["ce"] * r["tokens"] for r in rows) / tokens, rel=1e-5)
    random_states = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["RandomState"]
    assert len(random_states["ranks"]) == 2
