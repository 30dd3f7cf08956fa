"""Memory, ART and plasticity in every combination on both backbones: they train, save and load; off is plain."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import AttentionReader
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.options import AdvancedOptions
from lightning_app.plasticity.schedule import PlasticitySchedule
from lightning_app.training.callbacks.exact_resume import RandomState
from lightning_app.training.checkpoint import load_module
from lightning_app.training.compositions import CausalLM
from lightning_app.training.module import LanguageModule

STEPS = 6


def backbone_of(family: str) -> Backbone:
    """With dropout, so that a draw too many shows."""
    torch.manual_seed(0)
    if family == "decoder":
        return Decoder(vocab_size=257, block_size=16, embedding_dim=16, layers=2, heads=4, dropout=0.1)
    options = {"n_layer": 2, "n_embd": 16, "n_head": 4}
    return PretrainedLM(architecture="gpt2", options=options, vocab_size=257, block_size=16)


def module_of(family: str, *, memory: bool | None, art: bool | None) -> LanguageModule:
    """None: what is switched off is there, and does nothing."""
    regularizers = []
    if art is not False:
        weight = 1.0 if art else 0.0
        regularizers = [ARTRegularizer(lambda_art=weight, novelty="drift", vigilance=0.9, capacity=20)]
    backbone, options = backbone_of(family), {"scheduler": None, "extensions": regularizers}
    torch.manual_seed(1)
    if memory is False:
        return CausalLM(backbone, **options)
    readers = [AttentionReader()] if memory else []
    return VardaGPT(backbone, readers, segment_length=8 if memory else None, **options)


def schedule_of(level: float) -> PlasticitySchedule:
    return PlasticitySchedule(
        cycles=2 if level else 1,
        pruning_level=level,
        targets=["heads", "neurons"],
        training_steps=1,
        warmup_steps=0,
        finetuning_steps=2,
        advanced=AdvancedOptions(
            neuron_level=0.25 if level else 0.0, regrow=1 if level else 0, sample_batches=2, sample_batch_size=2
        ),
    )


def fit(module: LanguageModule, folder: Path, plasticity: float | None) -> L.Trainer:
    data = TextDataModule(
        train=Source("train.txt"),
        val=Source("val.txt"),
        block_size=16,
        dataloader={"batch_size": 4, "shuffle": True},
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        max_steps=STEPS,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        callbacks=[RandomState(), *([] if plasticity is None else [schedule_of(plasticity)])],
    )
    torch.manual_seed(2)
    trainer.fit(module, datamodule=data)
    return trainer


def logits(module: LanguageModule, data: TextDataModule) -> torch.Tensor:
    """Of the first validation texts, with what a memory has to say."""
    batch = data.dataset("val").__getitems__([0, 1])
    module.eval()
    with torch.no_grad():
        return module.outputs(batch).logits


def plain_weights(module: LanguageModule) -> dict[str, torch.Tensor]:
    """Of the language model alone, whatever wraps it."""
    inner: Any = module.backbone.backbone if isinstance(module, VardaGPT) else module.backbone
    return {name: p.detach().clone() for name, p in inner.named_parameters()}


ALL = list(itertools.product([False, True], repeat=3))
FAST = {  # all together; the others where all tests are run
    ("decoder", True, True, True),
    ("gpt2", True, True, True),
}


@pytest.mark.parametrize(
    ("family", "memory", "art", "plasticity"),
    [
        pytest.param(family, *on, marks=[] if (family, *on) in FAST else pytest.mark.slow)
        for family in ("decoder", "gpt2")
        for on in ALL
    ],
    ids=lambda on: on if isinstance(on, str) else "on" if on else "off",
)
def test_every_combination(folder: Path, family: str, memory: bool, art: bool, plasticity: bool):
    """What is on does something and loads again; what is off, though it is there, changes no bit."""
    module = module_of(family, memory=memory, art=art)
    trainer = fit(module, folder, 0.5 if plasticity else None)
    assert trainer.global_step == STEPS
    trainer.save_checkpoint("run.ckpt")
    loaded, _ = load_module("run.ckpt")
    assert torch.equal(logits(loaded, trainer.datamodule), logits(module, trainer.datamodule))
    heads = units_in(module, "heads")
    dead = [int((~units.mask).sum()) for units in heads]
    assert dead == [4 if plasticity else 0] * (2 if art else 1)
    if plasticity:
        assert all(int((~units.mask).sum()) == 32 for units in units_in(module, "neurons"))
        assert int((~units_in(loaded, "heads")[0].mask).sum()) == 4
    if isinstance(module, VardaGPT):
        assert module.backbone.readers[0].bank.size() > 0
    if art:
        assert len(module.regularizers[0].art) > 1  # type: ignore[attr-defined]
    if memory and art and plasticity:
        return
    off = module_of(family, memory=memory or None, art=art or None)
    fit(off, folder, 0.5 if plasticity else 0.0)
    torch.testing.assert_close(plain_weights(off), plain_weights(module), rtol=0, atol=0)
