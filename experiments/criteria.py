"""Does it pay to decide by the loss when heads go? The product's schedule, with its own rule and with given steps.

`plasticity_dynamic.yaml` warms up until the loss is stable. Here it is held against as many prunings at steps that are
spread evenly and at steps that are drawn; all else is the same, the steps in all too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from experiments import own_texts
from experiments.texts import articles, held_out
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Dataloader, Source
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.importance import SeedImportance
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.phases import Move
from lightning_app.plasticity.schedule import PlasticitySchedule
from lightning_app.plasticity.stabilization import Verdict
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.precision import has_fast_bf16
from lightning_app.training.schedulers import WarmupCosine

BY_LOSS, EVENLY, DRAWN, WHOLE = "by the loss", "evenly spread", "at random", "nothing removed"
ARMS = (WHOLE, BY_LOSS, EVENLY, DRAWN)


@dataclass(frozen=True)
class Options:
    """Of all arms.

    Attributes:
        model: options of the Decoder.
        steps: in all.
        training: of them before the first warm-up may begin.
        warmup: of each cycle, at most.
        finetuning: of each cycle.
        level: share of the heads that are gone at the end.
        sample: batches of 8 sequences, in place of the overlay's 8, that decisions rest on.
    """

    model: dict[str, Any] = field(
        default_factory=lambda: {"embedding_dim": 96, "layers": 3, "heads": 6, "positions": "rotary"}
    )
    steps: int = 500
    batch_size: int = 8
    training: int = 80
    warmup: int = 160
    finetuning: int = 50
    cycles: int = 2
    level: float = 0.5
    window: int | None = None
    sample: int = 4


def quick(options: Options) -> Options:
    model = options.model | {"embedding_dim": 32, "layers": 2, "heads": 4}
    return replace(options, model=model, steps=40, training=4, warmup=10, finetuning=6, window=4, sample=1)


class TimedSchedule(PlasticitySchedule):
    """Notes when it prunes, and the loss of each step.

    Args:
        at: optimizer steps of its prunings; None: as its rule says.
        options: see `ScheduleOptions`.
    """

    def __init__(self, at: list[int] | None = None, **options: Any):
        super().__init__(**options)
        self.at = at
        self.pruned_at: list[int] = []
        self.went_back = 0
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(self.module.train_loss))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _verdict(self) -> Verdict | None:
        if self.at is None or self.progress.at.phase != "warmup":
            return super()._verdict()
        due = self.at[self.progress.at.cycle - 1]
        return Verdict(self._in_run[0].global_step >= due, float("nan"), 0, f"step {due} was planned")

    def _transition(self, trainer: L.Trainer, move: Move) -> None:
        if move.to.phase == "pruning":
            self.pruned_at.append(trainer.global_step)
        self.went_back += "did not recover" in move.reason
        super()._transition(trainer, move)


def steps_of(arm: str, options: Options, seed: int) -> list[int] | None:
    """Optimizer steps of the prunings; None: as the rule says.

    Those that are drawn give each warm-up a length from 0 to the most that it may take.
    """
    n = options.cycles
    if arm == EVENLY:
        return [round(options.steps * (i + 1) / (n + 1)) for i in range(n)]
    if arm != DRAWN:
        return None
    drawn = np.random.default_rng((seed, 3)).integers(0, options.warmup, size=n, endpoint=True)
    waited = options.training + np.cumsum(drawn) + options.finetuning * np.arange(n)
    return [int(step) for step in waited]


def schedule_of(arm: str, options: Options, seed: int) -> TimedSchedule:
    """`plasticity_dynamic.yaml` in small."""
    advanced = {
        "strategy": SeedImportance(),
        "warmup": "stable",
        "automatic": True,
        "tolerance": 0.01,
        "stability_window": options.window,
        "sample_batches": options.sample,
        "save_importance": False,
    }
    return TimedSchedule(
        steps_of(arm, options, seed),
        cycles=options.cycles,
        pruning_level=options.level,
        targets=[] if arm == WHOLE else None,
        training_steps=options.training,
        warmup_steps=options.warmup,
        finetuning_steps=options.finetuning,
        advanced=advanced,
    )


@dataclass(frozen=True)
class Found:
    """A trained model, when heads went, how often it went back, how many are left, and the losses of all steps."""

    module: ArticleGPT
    pruned_at: list[int]
    went_back: int
    heads: int
    losses: list[float]


def fit(arm: str, options: Options, seed: int, folder: Path, *, vocab_size: int, block_size: int) -> Found:
    """Train a model; `folder` has its texts (see `write_texts`) and its tokenizer."""
    torch.manual_seed(seed)
    decoder = Decoder(vocab_size=vocab_size, block_size=block_size, **options.model)
    module = ArticleGPT(decoder, scheduler=lambda o: WarmupCosine(o, warmup_steps=options.steps // 10))
    schedule = schedule_of(arm, options, seed)
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if has_fast_bf16() else "32-true",
        max_steps=options.steps,
        gradient_clip_val=1.0,
        callbacks=[schedule],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=_data(folder, options, seed, block_size=block_size))
    heads = int(units_in(module, "heads")[0].mask.sum())
    return Found(module.eval(), schedule.pruned_at, schedule.went_back, heads, schedule.losses)


def _data(folder: Path, options: Options, seed: int, *, block_size: int) -> TextDataModule:
    return TextDataModule(
        train=Source(str(folder / "texts" / "train")),
        val=Source(str(folder / "texts" / "val")),
        tokenizer=str(folder / "bpe.tiktoken"),  # with a vocab_size it would be trained anew, on the text as files
        block_size=block_size,
        dataloader=Dataloader(batch_size=options.batch_size, shuffle=True),
        cache_dir=str(folder / "texts" / "tokens"),
        seed=seed,
    )


def write_texts(folder: Path, train: str, heldout: str, test: str | None) -> None:
    """The documents to learn and those to choose on, as files: not those to score."""
    parts = {"train": articles(train), "val": held_out(heldout, test)[0]}
    for part, documents in parts.items():
        own_texts.write(folder / "texts" / part, documents, numbered=True)
