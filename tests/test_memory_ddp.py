"""Two processes write one memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
import lightning as L
import torch
from lightning_app.models.decoder import Decoder
from lightning_app.models.readers import AttentionReader, CacheReader
from lightning_app.modules import VardaGPT
from lightning_app.text.datamodule import TextDataModule
from lightning_app.text.sources import Source

STEPS = 4


class Marks(L.Callback):
    '''Changes two buffers on the last rank alone: a free slot of a memory, and one that is not a memory's.'''

    def on_train_start(self, trainer, module):
        if trainer.global_rank == 1:
            module.backbone.readers[0].bank.memories[0].strengths[-1] = 7
            module.other.fill_(7)


devices = int(sys.argv[1])
torch.manual_seed(0)
shared = AttentionReader(memory_size=1000, num_search_results=3, forgetfulness_factor=0.0)
own = CacheReader(memory_size=50, streams=4, writes="always", forgetfulness_factor=0.1)
backbone = Decoder(vocab_size=257, block_size=16, embedding_dim=16, layers=1, heads=2)
module = VardaGPT(backbone, [shared, own], segment_length=8, scheduler=None)
module.register_buffer("other", torch.zeros(()))
data = TextDataModule(train=Source("train.txt"), block_size=16, dataloader={"batch_size": 4 // devices})
trainer = L.Trainer(
    accelerator="cpu",
    devices=devices,
    strategy="ddp" if devices > 1 else "auto",
    max_steps=STEPS,
    limit_val_batches=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    use_distributed_sampler=False,
    callbacks=[Marks()],
)
trainer.fit(module, datamodule=data)
torch.save(module.state_dict(), f"{devices}-{trainer.global_rank}.pt")
"""

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """State of the only process, and of both ranks."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "train.txt").write_text(" ".join(f"word{i * i % 17} and {i}" for i in range(200)))
    (folder / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for devices in (1, 2):
        command: list[Any] = [sys.executable, "train.py", str(devices)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")}


def memory(state: State, i: int, stream: int = 0) -> State:
    prefix = f"backbone.readers.{i}.bank.memories.{stream}."
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def test_both_ranks_hold_the_same_entries_in_the_same_order(states: dict[str, State]):
    for i, streams in ((0, 1), (1, 4)):
        for stream in range(streams):
            one, two = memory(states["2-0"], i, stream), memory(states["2-1"], i, stream)
            assert int((one["slot_ids"] >= 0).sum()) >= 30
            for name in one:
                kept = slice(None, -1) if one[name].dim() else ...  # the last slot is marked on one rank
                assert torch.equal(one[name][kept], two[name][kept]), name


def test_they_are_those_of_one_process_with_twice_the_batch(states: dict[str, State]):
    found = [memory(states[name], 0) for name in ("1-0", "2-0")]
    n = [int((m["slot_ids"] >= 0).sum()) for m in found]
    assert n[0] == n[1] > 200  # of 256: a new memory is open
    orders = [m["positions"][: n[0]].argsort() for m in found]
    one, two = ({name: x[order] for name, x in m.items() if x.dim()} for m, order in zip(found, orders, strict=True))
    for name in ("positions", "documents", "tokens"):
        assert torch.equal(one[name], two[name])
    assert len(one["positions"].unique()) == n[0]
    torch.testing.assert_close(one["vectors"], two["vectors"], rtol=0, atol=1e-3)  # Adam enlarges float noise


def test_memories_are_not_broadcast_at_each_step(states: dict[str, State]):
    """A free slot that was changed on one rank stays changed; another buffer is as on rank 0 again."""
    assert [float(memory(states[name], 0)["strengths"][-1]) for name in ("2-0", "2-1")] == [0, 7]
    assert [float(states[name]["other"]) for name in ("2-0", "2-1")] == [0, 0]
