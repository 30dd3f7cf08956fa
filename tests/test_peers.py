"""What a model's bits per byte stand beside."""

import math
from pathlib import Path

import pytest
import torch

from lightning_app.data.compression import lzma_bits_per_byte
from lightning_app.data.datamodule import Source, TextDataModule
from lightning_app.models.ngrams import UNKNOWN, NGramCounts
from lightning_app.peers import peers_of

TRAIN = "a model reads what a teacher writes, and a teacher writes what nobody reads. " * 9
VAL = "nobody reads what a model writes, and a model reads what nobody writes. "


@pytest.fixture
def data(tmp_path: Path) -> TextDataModule:
    for name, text in (("train", TRAIN), ("val", VAL)):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    sources = {name: Source(str(tmp_path / f"{name}.txt")) for name in ("train", "val")}
    made = TextDataModule(**sources, tokenizer="bytes", block_size=16, cache_dir=str(tmp_path / "cache"), clean=False)
    made.prepare_data()
    made.setup("fit")
    return made


def test_counts_predict_each_token_from_those_before_it(data: TextDataModule):
    peers = peers_of(data)
    assert peers is not None
    assert peers.lzma == lzma_bits_per_byte(TRAIN.encode(), VAL.encode())
    train, val = (torch.tensor(data.tokens(name).ids[:].tolist()) for name in ("train", "val"))
    for order, found in ((3, peers.trigrams), (5, peers.fivegrams)):
        counts, bits = NGramCounts.of(train, order=order, vocab_size=data.vocab_size), 0.0
        for i, token in enumerate(val.tolist()):
            context = [UNKNOWN] * (order - 1) + val[:i].tolist()
            bits -= math.log2(counts.distribution(torch.tensor([context[1 - order :]]))[0, token])
        assert found == pytest.approx(bits / len(VAL), rel=1e-5)


def test_a_part_of_a_text_has_none(data: TextDataModule, tmp_path: Path):
    part = Source(str(tmp_path / "val.txt"), max_samples=1)
    options = {"tokenizer": "bytes", "block_size": 16, "cache_dir": str(tmp_path / "cache"), "clean": False}
    other = TextDataModule(train=Source(str(tmp_path / "train.txt")), val=part, **options)
    other.prepare_data()
    other.setup("fit")
    assert peers_of(other) is None
