"""Two processes learn the same categories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.models.art import ART

ROOT = Path(__file__).parent.parent
OPTIONS: dict[str, Any] = {"vigilance": 0.9, "capacity": 30, "normalize": "center", "fast_inputs": 3, "merge_at": 0.4}

SCRIPT = """
import json
import sys
import lightning as L
import torch
from lightning_app.models.art import SPAN
from lightning_app.models.decoder import Decoder
from lightning_app.modules import ARTGPT2, ARTRegularizer
from lightning_app.ops.art import spans
from lightning_app.text.datamodule import TextDataModule
from lightning_app.text.sources import Source

seen, learned = [], ARTRegularizer.learn


def learn(self, outputs):
    # What this rank gives, and in one batch of rank 1 a text that is left out there alone.
    if len(seen) == 3 and torch.distributed.get_rank() == 1:
        outputs.states.last[0, 0] = torch.nan
    embeddings, ends = self.embeddings(outputs)
    finite = embeddings.isfinite().all(-1)
    seen.append((embeddings[finite], spans(outputs.ids, outputs.mask, ends, self.pooling, length=SPAN)[finite]))
    learned(self, outputs)


ARTRegularizer.learn = learn
torch.manual_seed(0)
art = ARTRegularizer(pooling="mean", novelty="drift", average_decay=0.5, **json.loads(sys.argv[1]))
module = ARTGPT2(Decoder(vocab_size=257, block_size=16, embedding_dim=16, layers=1, heads=2), art, scheduler=None)
data = TextDataModule(train=Source("train.txt"), block_size=16, dataloader={"batch_size": 4})
trainer = L.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=6,
    accumulate_grad_batches=2,
    limit_val_batches=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    use_distributed_sampler=False,
)
trainer.fit(module, datamodule=data)
torch.save({"state": module.state_dict(), "seen": seen}, f"{trainer.global_rank}.pt")
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """State of both, and what each gave: (embeddings, texts) of every batch."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "train.txt").write_text(" ".join(f"word{i * i % 17} and {i}" for i in range(200)))
    (folder / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "train.py", json.dumps(OPTIONS)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "1 of 4 embeddings are not finite" in done.stderr + done.stdout
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def categories(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "regularizers.0.art."
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def test_both_ranks_hold_the_same_categories_texts_and_averaged_model(ranks: list[dict[str, Any]]):
    one, two = (rank["state"] for rank in ranks)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert any(".average." in name for name in one)
    assert int(one["regularizers.0.steps"]) == 6


def test_they_are_those_of_one_process_that_was_given_the_rows_of_both_in_the_order_of_the_ranks(
    ranks: list[dict[str, Any]],
):
    alone = ART(16, **OPTIONS)
    assert len(ranks[0]["seen"]) == 12
    for batches in zip(*(rank["seen"] for rank in ranks), strict=True):
        alone.learn(torch.cat([x for x, _ in batches]), torch.cat([spans for _, spans in batches]))
    found = categories(ranks[0]["state"])
    torch.testing.assert_close(found, dict(alone.state_dict()), rtol=0, atol=0)
    assert len(alone) > 3
    assert int(alone.seen) == 12 * 8 - 1 - 8  # without the bad one, and without those that only gave a mean
