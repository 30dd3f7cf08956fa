"""Shares of several training sources, and measures of several validation sources, in a small fit."""

import lightning as L
import pytest
import torch

from lightning_app.data.datamodule import TextDataModule
from lightning_app.models.decoder import Decoder
from lightning_app.training.callbacks.shares import SourceShares
from lightning_app.training.compositions import ArticleGPT

SOURCES = {"xs": "x" * 600, "ys": "y" * 300, "zs": "xyz" * 100}


@pytest.fixture
def make(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / f"{name}.txt").write_text(text)

    def sources(**weights):
        return [{"path": str(tmp_path / f"{name}.txt"), "weight": weight} for name, weight in weights.items()]

    def make(val="xs ys", **weights) -> TextDataModule:
        splits = {"train": sources(**weights), "val": sources(**dict.fromkeys(val.split()))}
        return TextDataModule(**splits, block_size=8, cache_dir=str(tmp_path / "cache"), seed=1)

    return make


def fit(data: TextDataModule, steps: int, **options) -> L.Trainer:
    torch.manual_seed(0)
    module = ArticleGPT(Decoder(vocab_size=257, block_size=8, embedding_dim=8, layers=1, heads=1), scheduler=None)
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=steps,
        accelerator="cpu",
        logger=False,
        log_every_n_steps=1,
        callbacks=[SourceShares()],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def test_shares_are_those_of_the_tokens_seen(make):
    data = make(xs=1, ys=2, zs=1)
    numbers = fit(data, 9).callback_metrics
    loader, seen = iter(data.train_dataloader()), torch.zeros(3)
    for _ in range(9):
        batch = next(loader)
        parts = data.dataset("train").part_of(batch.document_ids[batch.attention_mask])
        seen += torch.bincount(parts, minlength=3)
    for i, name in enumerate(("xs", "ys", "zs")):
        assert numbers[f"train/share_{name}"] == pytest.approx(float(seen[i] / seen.sum()))


def test_each_validation_source_is_measured_as_if_alone(make):
    together = fit(make(xs=1, zs=1), 5).callback_metrics
    for name in ("xs", "ys"):
        alone = fit(make(val=name, xs=1, zs=1), 5).callback_metrics
        for measure in ("ce", "bpb"):
            assert together[f"val/{measure}_{name}"] == pytest.approx(float(alone[f"val/{measure}"]), rel=1e-5)
        assert f"val/bpb_{name}" not in alone


def test_one_source_logs_no_shares(make):
    data = make(xs=None)
    trainer = fit(data, 2)
    assert not [name for name in trainer.callback_metrics if "share" in name]
    assert trainer.callbacks[0].state_dict() == {}
