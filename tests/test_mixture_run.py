"""Runs on several sources: what is logged of each, and that a resume goes on with the counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
RUNS = Path("runs")


def records(run: str) -> list[dict]:
    return [json.loads(line) for line in (RUNS / run / "version_0/log.jsonl").read_text().splitlines()]


def numbers(run: str, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in records(run) if name in row}


@pytest.fixture
def mixed(folder, config):
    Path("xs.txt").write_text("x" * 3000)
    Path("ys.txt").write_text("y" * 500)
    sources = [{"path": "train.txt", "weight": 1}, {"path": "xs.txt", "weight": 2}, {"path": "ys.txt", "weight": 1}]
    val = [{"path": "val.txt"}, {"path": "ys.txt", "name": "other"}]
    data = {"train": sources, "val": val, "test": val, "dataloader": {"batch_size": 8}}
    trainer = {"max_steps": 12, "val_check_interval": 4}
    return config({"data": data, "model": {"init_args": {"scheduler": None}}, "trainer": trainer})


@pytest.mark.slow
def test_shares_and_each_validation_source_are_logged_and_a_resume_is_exact(mixed, main):
    main("fit", "--config", mixed, "--name", "whole")
    shares = [numbers("whole", f"train/share_{name}")[12] for name in ("train", "xs", "ys")]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.07)
    val = {name: numbers("whole", f"val/{name}")[12] for name in ("ce", "ce_val", "ce_other", "bpb", "bpb_other")}
    assert min(val["ce_val"], val["ce_other"]) < val["ce"] < max(val["ce_val"], val["ce_other"])
    assert val["bpb_other"] == pytest.approx(val["ce_other"] / 0.6931472, rel=0.01)

    main("fit", "--config", mixed, "--name", "half", "--trainer.max_steps", 5)
    half = "runs/half/version_0/checkpoints/last.ckpt"
    main("fit", "--config", mixed, "--name", "half", "--ckpt_path", half)
    for name in ("train/share_xs", "train/share_ys", "train/loss"):
        whole, resumed = numbers("whole", name), numbers("half", name)
        assert {step: resumed[step] for step in range(6, 13)} == {step: whole[step] for step in range(6, 13)}
    ours, theirs = (torch.load(RUNS / f"{run}/version_0/checkpoints/last.ckpt") for run in ("whole", "half"))
    assert all(torch.equal(tensor, theirs["state_dict"][name]) for name, tensor in ours["state_dict"].items())


def test_a_test_measures_each_source(mixed, main, capsys):
    main("test", "--config", mixed)
    said = capsys.readouterr().out
    assert "test/bpb_val" in said
    assert "test/bpb_other" in said


@pytest.mark.slow
def test_two_ranks_count_together(mixed, main):
    short = ["--config", mixed, "--trainer.max_steps", "4"]
    main("fit", *short, "--name", "one")
    command = [sys.executable, str(ROOT / "main.py"), "fit", *short, "--name", "two", "--trainer.devices", "2"]
    command += ["--trainer.strategy", "ddp", "--data.dataloader.batch_size", "4"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name in ("train/share_train", "train/share_xs", "val/bpb_val", "val/bpb_other"):
        one, two = numbers("one", name), numbers("two", name)
        assert one.keys() == two.keys()
        assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-3)
