"""What `fit` adds to a training step: the shipped command, with everything that it logs, against a bare loop."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import lightning as L
import torch
import yaml
from torch import nn

from benchmarks.common import Contestant, Row, Run, Table, Timings, check_equal, compare, main, ratio_row
from benchmarks.same_weights import seeded_decoder
from benchmarks.train_step import SMALL, TINY, Shape
from lightning_app import app as harness
from lightning_app.cli import main as command
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Dataloader, Source
from lightning_app.training.allocator import tune_allocator
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.schedulers import WarmupCosine

ARTICLES = Path(__file__).parent.parent / "data" / "articles" / "train"
CHUNK = 5  # steps of one side before it is the other's turn
LOG_EVERY = 25  # steps; the CLI's default. One round is one such interval.
MAX_STEPS = 10_000  # nominal length of the run: it is left before
FIRST = replace(SMALL, batch_size=2)  # half the time of the training benchmark, and the harder case
LR, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0


class Pace(L.Callback):
    """Stops a fit after every `CHUNK` steps until it is told to go on."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.go: SimpleQueue[None] = SimpleQueue()
        self.done: SimpleQueue[list[float] | BaseException] = SimpleQueue()  # the losses of the steps
        self.losses: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.backbone.load_state_dict(seeded_decoder(**self.shape.decoder_options()).state_dict())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        if len(self.losses) == CHUNK:
            self.done.put(self.losses)
            self.losses = []
            self.go.get()


class Terminal:
    """Goes nowhere, but says that it is a terminal, so that the progress bar is drawn."""

    def __init__(self) -> None:
        self.file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for the life of the process)

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def config(shape: Shape, folder: str) -> dict[str, Any]:
    """All else is what the CLI does by default."""
    return {
        "name": "overhead",
        "runs_dir": folder,
        "seed_everything": 1,
        "tune_allocator": True,
        "data": {
            "train": {"path": str(ARTICLES)},
            "tokenizer": "bytes",
            "vocab_size": shape.vocab_size,
            "block_size": shape.block_size,
            "cache_dir": f"{folder}/tokens",
            "dataloader": {"batch_size": shape.batch_size},
        },
        "model": {
            "class_path": "ArticleGPT",
            "init_args": {
                "backbone": {"embedding_dim": shape.embedding_dim, "layers": shape.layers, "heads": shape.heads},
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": LR, "weight_decay": WEIGHT_DECAY, "fused": True},
                },
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": MAX_STEPS,
            "limit_val_batches": 0,
            "enable_model_summary": False,
            "log_every_n_steps": LOG_EVERY,
            "gradient_clip_val": CLIP,
        },
    }


# The sides. A run is CHUNK steps and returns their losses.


def fit(shape: Shape, folder: str) -> Run:
    """`python main.py fit` in a thread of this process."""
    pace, path, defaults = Pace(shape), Path(folder) / f"{shape.name}.yaml", harness.default_callbacks
    path.write_text(yaml.safe_dump(config(shape, folder)), encoding="utf-8")
    harness.default_callbacks = lambda: [*defaults(), pace]
    sys.stdout = sys.stderr = Terminal()

    def target() -> None:
        torch.set_num_threads(1)  # holds for one thread
        try:
            command(["fit", "--config", str(path)])
        except BaseException as error:  # handed to `run`, which raises
            pace.done.put(error)

    thread = threading.Thread(target=target, daemon=True)

    def run() -> list[float]:
        if thread.ident is None:
            thread.start()
        else:
            pace.go.put(None)
        losses = pace.done.get()
        if isinstance(losses, BaseException):
            raise RuntimeError("fit failed") from losses
        return losses

    return run


def bare(shape: Shape, folder: str) -> Run:
    """Forward, loss, backward, clipping, optimizer, schedule, over the same module and batches."""
    tune_allocator()
    module = ArticleGPT(seeded_decoder(**shape.decoder_options())).train()
    data = TextDataModule(
        train=Source(str(ARTICLES)),
        vocab_size=shape.vocab_size,
        block_size=shape.block_size,
        dataloader=Dataloader(batch_size=shape.batch_size),
        cache_dir=f"{folder}/tokens",
        seed=1,
    )
    data.prepare_data()
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    others = [{"params": [p for p in module.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([{"params": matrices}, *others], lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = WarmupCosine(optimizer, total_steps=MAX_STEPS)
    batches = iter(data.train_dataloader())

    def step() -> float:
        _, loss = module.loss_terms(module.outputs(next(batches)))["ce"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        return loss.item()

    return lambda: [step() for _ in range(CHUNK)]


# The comparison


def contest(shape: Shape, *, quick: bool) -> Timings:
    per_round = LOG_EVERY // CHUNK
    with tempfile.TemporaryDirectory() as folder:
        options = {"shape": shape, "folder": folder}
        contestants = [Contestant("bare", bare, options), Contestant("fit", fit, options)]
        timings = compare(contestants, rounds=per_round * (1 if quick else 5), warmup=1)
    losses = {side: [x for chunk in chunks for x in chunk] for side, chunks in timings.results.items()}
    check_equal(shape.name, losses, tolerance=0.0)
    return timings


def seconds_per_step(timings: Timings, side: str) -> list[float]:
    """Of each round, which is one interval of logging."""
    seconds, per_round = timings.seconds[side], LOG_EVERY // CHUNK
    return [sum(seconds[i : i + per_round]) / LOG_EVERY for i in range(0, len(seconds), per_round)]


def rows(shape: Shape, *, most_percent: float | None = None, most_ms: float | None = None, quick: bool) -> list[Row]:
    timings = contest(shape, quick=quick)
    plain, shipped = seconds_per_step(timings, "bare"), seconds_per_step(timings, "fit")
    pairs = list(zip(plain, shipped, strict=True))
    name = f"{shape.name}, batch {shape.batch_size} x {shape.block_size}"
    return [
        at_most(f"{name}: fit adds", [100 * (b / a - 1) for a, b in pairs], most=most_percent, unit=" %"),
        at_most(f"{name}: fit adds, per step", [1e3 * (b - a) for a, b in pairs], most=most_ms, unit=" ms"),
        ratio_row(f"{name}: a step of the bare loop", [1e3 * a for a in plain], unit=" ms"),
    ]


def at_most(what: str, values: list[float], *, most: float | None, unit: str) -> Row:
    row = ratio_row(what, values, unit=unit)
    if most is None:
        return row
    return replace(row, target=f"<= {most:g}{unit}", met=sorted(values)[len(values) // 2] <= most)


NOTES = f"""Time per step of `python main.py fit` (LightningCLI, progress bar, TensorBoard, log.jsonl, all default
callbacks, logging every {LOG_EVERY} steps, no validation and no checkpoint in between) and of a bare loop:
forward, loss, backward, clipping at {CLIP:g}, fused AdamW, schedule. The same weights and batches, and equal
losses to the last bit. The sides take turns every {CHUNK} steps; a round is {LOG_EVERY} steps."""


def tables(quick: bool = False) -> list[Table]:
    found = rows(TINY, most_ms=4, quick=quick)
    if not quick:
        found = [*rows(FIRST, most_percent=3, quick=quick), *found]
    return [Table("What fit adds to a step", found, NOTES)]


if __name__ == "__main__":
    main(tables)
