"""What tests/test_accumulation.py trains: in its process, and on the two of `python -m tests.accumulation_cases`."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.former import options_of_today
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import AttentionReader, ConcatReader
from lightning_app.memory.readers.learned import AdvancedReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs, Regularizer
from lightning_app.training.callbacks.exact_resume import ExactResume, RandomState
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.distributed import rank
from lightning_app.training.module import LanguageModule

PAIRS, BLOCK = 20, 24  # 20 pairs: two steps of 8, then one of 4
WHOLE = 8  # pairs of a step, of all ranks


@dataclass(frozen=True)
class Case:
    """A module that is trained with SGD, and what else the Trainer needs."""

    module: Callable[[], LanguageModule]
    epochs: int = 1
    trainer: dict[str, Any] = field(default_factory=dict)


class ZLoss(Regularizer):
    """The logits' normaliser, squared, over all tokens, the prompt's too."""

    means_over = {"z": "tokens"}  # noqa: RUF012

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"z": outputs.logits.logsumexp(-1)[outputs.mask].square().mean()}

    def learn(self, outputs: Outputs) -> None:
        """Nothing."""


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def decoder() -> Decoder:
    return Decoder(vocab_size=257, block_size=BLOCK, embedding_dim=16, layers=2, heads=2, dropout=0.0)


def article(*regularizers: Regularizer) -> ArticleGPT:
    return ArticleGPT(decoder(), optimizer=sgd, scheduler=None, extensions=list(regularizers))


def varda(reader: type[AttentionReader | ConcatReader] = AttentionReader, **options: Any) -> VardaGPT:
    advanced = AdvancedReader(store_free_steps=1, store_rise_steps=1, hard_deletion_after=3)
    made = reader(memory_size=300, num_search_results=3, store_cost=0.5, advanced=advanced, **options)
    return VardaGPT(decoder(), [made], segment_length=8, optimizer=sgd, scheduler=None)


def art(pooling: str = "mean", **options: Any) -> ARTGPT2:
    categories: dict[str, Any] = {"vigilance": 0.9, "normalize": "center", "capacity": 30, **options}
    given = {"lambda_art": 0.5, "pooling": pooling, "rehearsal": 1.0, "average_decay": 0.5, **categories}
    term = ARTRegularizer(**options_of_today(given, "ARTRegularizer"))
    return ARTGPT2(decoder(), term, optimizer=sgd, scheduler=None)


CASES = {
    "plain": Case(article),
    "another term": Case(lambda: article(ZLoss(0.1))),
    "clipped": Case(article, trainer={"gradient_clip_val": 0.1}),
    "by epoch": Case(article, epochs=2),
    "still": Case(lambda: ArticleGPT(decoder(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), scheduler=None)),
    "memory": Case(varda, epochs=2),
    "memory at the input": Case(lambda: varda(ConcatReader), epochs=2),
    "art": Case(art, epochs=2),
    "art of tokens": Case(lambda: art("token", learn_at_most=50, novelty="margin"), epochs=2),
    "budget": Case(lambda: varda(target_rate=0.2)),
}


class Norms(L.Callback):
    """The loss and the gradient norm of each step, as they are logged."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            assert self.losses[-1] == float(pl_module.train_loss)
            self.norms.append(float(pl_module.grad_norm))


def trained(name: str, *, accumulate: int, ranks: int = 1, **options: Any) -> dict[str, Any]:
    """What a case learned, in the working folder: `WHOLE` pairs a step, cut into so many batches on each rank."""
    case, norms = CASES[name], Norms()
    torch.manual_seed(0)
    module = case.module()
    before = {key: p.detach().clone() for key, p in module.named_parameters() if p.requires_grad}
    save, resumed = options.pop("save", None), options.pop("ckpt_path", None)
    loader = {"batch_size": WHOLE // ranks // accumulate, **options.pop("loader", {})}
    data = TextDataModule(
        train=Source("pairs.jsonl"), val=Source("pairs.jsonl"), block_size=BLOCK, dataloader=loader, seed=1
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        accumulate_grad_batches=accumulate,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[RandomState(), ExactResume(), norms, *options.pop("callbacks", [])],
        **{"max_steps": -1, "max_epochs": case.epochs, "limit_val_batches": 0, **case.trainer, **options},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=resumed)
    if save:
        trainer.save_checkpoint(save)
    state = module.state_dict()
    update = torch.cat([(state[key] - old).double().flatten() for key, old in before.items()])
    found = {"update": update, "state": state, "losses": norms.losses, "norms": norms.norms}
    return {**found, "planned": module.optimizer_steps()}


def write_pairs(folder: Path) -> None:
    """Prompts and targets of 1 to 12 letters."""
    r = random.Random(0)

    def letters() -> str:
        return "".join(r.choice("abcd ") for _ in range(r.randint(1, 12))).strip() or "e"

    rows = [{"prompt": letters(), "target": letters()} for _ in range(PAIRS)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {name: [trained(name, accumulate=n, ranks=2) for n in (1, 4)] for name in json.loads(sys.argv[1])}
    torch.save(found, f"{rank()}.pt")
