"""Two processes prune the same heads, and train on as one process with batches of twice the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.callbacks.run_log import read_log

ROOT = Path(__file__).parent.parent

SCRIPT = """
import json
import sys
import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning_app.callbacks import PlasticitySchedule, RunLog
from lightning_app.models.decoder import Decoder
from lightning_app.modules import ArticleGPT
from lightning_app.text.datamodule import TextDataModule
from lightning_app.text.sources import Source

ranks, options = int(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
backbone = Decoder(vocab_size=257, block_size=16, embedding_dim=16, layers=2, heads=4)
adamw = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, eps=1e-4)
module = ArticleGPT(backbone, optimizer=adamw, scheduler=None)
data = TextDataModule(
    train=Source("train.txt"), val=Source("val.txt"), block_size=16, dataloader={"batch_size": 4 // ranks}
)
schedule = PlasticitySchedule(
    cycles=2, pruning_level=0.5, training_steps=1, warmup_steps=1, finetuning_steps=2, sample_batches=2,
    sample_batch_size=2, layer_lr_factor=3.0, **options,
)
trainer = L.Trainer(
    accelerator="cpu",
    devices=ranks,
    strategy="ddp" if ranks > 1 else "auto",
    max_steps=8,
    limit_val_batches=0,
    gradient_clip_val=1.0,
    logger=CSVLogger("runs", name=str(ranks), version=0),
    log_every_n_steps=1,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    use_distributed_sampler=False,
    callbacks=[RunLog(), schedule],
)
trainer.fit(module, datamodule=data)
torch.save(
    {"state": module.state_dict(), "layout": module.units("heads")[0].layout()}, f"{ranks}_{trainer.global_rank}.pt"
)
"""

WAYS: dict[str, dict[str, Any]] = {
    "remove": {"targets": ["heads", "neurons"], "regrow": 1, "head_lr_factor": 2.0},
    "mask": {"surgery": "mask", "targets": ["heads", "neurons"], "regrow": 1, "regrow_how": "new"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_prune_and_learn_as_one(way: str, tmp_path: Path):
    for name, n in (("train", 200), ("val", 60)):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"word{i * i % 17} and {i}" for i in range(n)))
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for ranks in (1, 2):
        command = [sys.executable, "train.py", str(ranks), json.dumps(WAYS[way])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    alone, one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)
    assert one["layout"] == two["layout"] == alone["layout"]
    torch.testing.assert_close(one["state"], alone["state"], rtol=0, atol=2e-5)
    assert sum(len(row) for row in one["layout"]["present"]) == (4 if way == "remove" else 8)
    runs = [read_log(tmp_path / "runs" / ranks / "version_0") for ranks in ("1", "2")]
    for event, field in (("pruning_event", "heads"), ("regrowth_event", "heads"), ("pruning_event", "widths")):
        found = [[r.get(field) for r in records if r.get("event") == event] for records in runs]
        assert found[0] == found[1]
        assert any(found[0])
    proofs = [r["checks"] for r in runs[1] if r.get("event") == "proof"]
    assert len(proofs) == 6
    assert all(checks["ranks with the same weights"] == 2 for checks in proofs)
