"""What tests/test_ddp.py trains: each case by one process, and by two."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.multiprocessing import start_processes

from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.art.network import AdvancedART
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import AttentionReader, CacheReader, GatedMixture, PointerReader, Reader
from lightning_app.memory.readers.learned import AdvancedReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs
from lightning_app.plasticity.options import AdvancedOptions
from lightning_app.plasticity.pruner import Surgery
from lightning_app.plasticity.schedule import PlasticitySchedule
from lightning_app.training.callbacks.run_log import RunLog
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.distributed import rank, whole, world_size
from lightning_app.training.module import LanguageModule
from lightning_app.training.muon import Muon
from lightning_app.training.optimizer_parts import Entry, OptimizerByParts

STEPS, BATCH, BLOCK = 20, 8, 16
TEXT = " ".join(f"word{i * i % 17} and {i}" for i in range(200))[:789]  # 50 windows, the last one of 5 tokens
NOT_FINITE_BATCH, NOT_FINITE_ROW = 4, 5  # a text that is left out
MARK = 7


@dataclass(frozen=True)
class Case:
    """A module, and what else its training needs."""

    module: Callable[[], LanguageModule]
    order: str = "windows"
    accumulate: int = 1
    callbacks: Callable[[], list[L.Callback]] = field(default=list)


class Losses(L.Callback):
    """The loss of the step's batches so far, at each batch, as this rank has it."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModule)
        self.found.append(float(pl_module.train_loss))


class Marks(L.Callback):
    """Changes two buffers on the last rank alone: a free slot of a memory, and one that is not a memory's."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == 1:
            pl_module.backbone.readers[0].bank.memories[0].strengths[-1] = MARK
            pl_module.other.fill_(MARK)


class GoneWrong(ARTRegularizer):
    """One text of one batch has no finite embedding."""

    batch = 0

    def learn_step(self, seen: Sequence[Outputs]) -> None:
        for outputs in seen:
            rows = len(outputs.ids)
            row = NOT_FINITE_ROW - rank() * rows
            if self.batch == NOT_FINITE_BATCH and 0 <= row < rows:
                outputs.states.last[row, 0] = torch.nan
            self.batch += 1
        super().learn_step(seen)


def decoder(**options: Any) -> Decoder:
    return Decoder(**{"vocab_size": 257, "block_size": BLOCK, "embedding_dim": 16, "layers": 2, "heads": 4, **options})


def article() -> ArticleGPT:
    return ArticleGPT(decoder(), scheduler=None)


def muon() -> ArticleGPT:
    parts = [Entry(partial(Muon, lr=0.02), "matrices"), Entry(torch.optim.AdamW)]
    return ArticleGPT(decoder(), optimizer=partial(OptimizerByParts, parts=parts), scheduler=None)


def by_parts() -> ArticleGPT:
    parts = [Entry(torch.optim.AdamW, "matrices"), Entry(partial(torch.optim.SGD, lr=0.1, momentum=0.9))]
    return ArticleGPT(decoder(), optimizer=partial(OptimizerByParts, parts=parts), scheduler=None)


SPIKE = 10  # the step that `Spiky` is to leave out


class Spiky(ArticleGPT):
    """At one step the last rank alone sees a loss that is far too large."""

    def loss_terms(self, outputs: Outputs) -> dict[str, tuple[float, torch.Tensor]]:
        (weight, ce) = super().loss_terms(outputs)["ce"]
        here = self.training and self.trainer.global_step == SPIKE and rank() == world_size() - 1
        return {"ce": (weight, ce * 100 if here else ce)}


def spiky() -> ArticleGPT:
    module = Spiky(decoder(), scheduler=None, skip_spikes=True)
    before = {"loss": [4.0, 6.0] * 20, "gradient norm": [0.5, 5.0] * 20}
    assert module.spikes is not None
    module.spikes.load_state_dict({"seen": before, "skipped": 0, "in_a_row": 0})
    return module


def varda(*, streams: bool) -> VardaGPT:
    learned = AttentionReader(
        memory_size=2000,
        num_search_results=3,
        forgetfulness_factor=0.01,
        target_rate=0.5,
        retrieval_weight=0.1,
        advanced=AdvancedReader(store_free_steps=2, store_rise_steps=3, hard_deletion_after=5),
    )
    own = CacheReader(memory_size=50, streams=BATCH, writes="always", forgetfulness_factor=0.1)
    pointer = PointerReader(memory_size=50, streams=BATCH, writes="always", forgetfulness_factor=0.1)
    readers: list[Reader] = [learned, own, pointer, GatedMixture()] if streams else [learned]
    module = VardaGPT(decoder(), readers, segment_length=8, scheduler=None)
    module.register_buffer("other", torch.zeros(()))
    return module


def art(pooling: str, novelty: str) -> ARTGPT2:
    options: dict[str, Any] = {"vigilance": 0.9, "capacity": 30, "normalize": "center"}
    advanced = AdvancedART(fast_inputs=3, average_decay=0.5, merge_at=0.4)
    term = GoneWrong(pooling=pooling, novelty=novelty, lambda_art=0.5, advanced=advanced, **options)
    return ARTGPT2(decoder(), term, scheduler=None)


def schedule(surgery: Surgery = "remove", **options: Any) -> list[L.Callback]:
    phases = {"training_steps": 3, "warmup_steps": 2, "finetuning_steps": 4, "cycles": 2}
    cut = {"pruning_level": 0.5, "targets": ["heads", "neurons"]}
    advanced = AdvancedOptions(sample_batches=2, sample_batch_size=2, regrow=1, layer_lr_factor=3.0, **options)
    return [RunLog(), PlasticitySchedule(**phases, **cut, surgery=surgery, advanced=advanced)]


CASES = {
    "article": Case(article),
    "spikes": Case(spiky),
    "muon": Case(muon),
    "by parts": Case(by_parts),
    "varda": Case(lambda: varda(streams=True), order="streams", callbacks=lambda: [Marks()]),
    "varda, shuffled": Case(lambda: varda(streams=False)),
    "art": Case(lambda: art("mean", "drift"), accumulate=2),
    "art, tokens": Case(lambda: art("token", "margin")),
    "plasticity": Case(article, callbacks=lambda: schedule(head_lr_factor=2.0)),
    "plasticity, masks": Case(article, callbacks=lambda: schedule(surgery="mask", regrow_how="new")),
}


def train(name: str, ranks: int, *, sharded: bool = False) -> dict[str, Any]:
    """Losses and weights of a case, trained in the working folder; sharded ones leave the checkpoint `NAME.ckpt`."""
    case, losses = CASES[name], Losses()
    torch.manual_seed(0)
    module = case.module()
    data = TextDataModule(
        train=Source("train.txt"),
        val=Source("val.txt"),
        block_size=BLOCK,
        order=case.order,
        dataloader={"batch_size": BATCH // ranks, "drop_last": case.order == "streams"},
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=sharding(ranks) if sharded else "ddp" if ranks > 1 else "auto",
        max_steps=STEPS,
        accumulate_grad_batches=case.accumulate,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=CSVLogger("runs", name=f"{name}, {ranks}", version=0),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[losses, *case.callbacks()],
    )
    trainer.fit(module, datamodule=data)
    if sharded:
        trainer.save_checkpoint(f"{name}.ckpt")
    skipped = 0 if module.spikes is None else module.spikes.skipped
    return {
        "losses": losses.found,
        "skipped": skipped,
        "state": {key: whole(x) for key, x in module.state_dict().items()},
    }


def sharding(ranks: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


def write_texts(folder: Path) -> None:
    (folder / "train.txt").write_text(TEXT)
    (folder / "val.txt").write_text(TEXT[:200])


def train_rank(rank: int, names: Sequence[str], sharded: bool, port: int) -> None:
    """One of two processes that train all cases, in the working folder: what it found goes into RANK.pt, and what it
    warned of into RANK.txt."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = {name: train(name, 2, sharded=sharded) for name in names}
    assert world_size() == 2
    torch.save(found, f"{rank}.pt")
    Path(f"{rank}.txt").write_text("\n".join(str(one.message) for one in said), encoding="utf-8")


def train_both(names: Sequence[str], *, sharded: bool = False) -> str:
    """Train all cases by two processes -> what they warned of. They are forked: half of their time would be imports."""
    port = find_free_network_port()
    start_processes(train_rank, (names, sharded, port), nprocs=2, start_method="fork")
    return "".join(Path(f"{rank}.txt").read_text(encoding="utf-8") for rank in range(2))
