"""What a model's bits per byte stand beside."""

import math
import os
from pathlib import Path

import pytest
import torch

from lightning_app.data.compressors import bits_per_byte, installed, lzma_size
from lightning_app.data.datamodule import Source, TextDataModule
from lightning_app.data.sources import Split
from lightning_app.models.ngrams import UNKNOWN, NGramCounts
from lightning_app.peers import _of_compressors, peers_of

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
    for one in installed():
        expected = bits_per_byte(one.size, VAL.encode(), after=TRAIN.encode()) if one.least == 0 else None
        assert getattr(peers, one.name) == expected
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


def test_what_a_split_deals_out_was_read_before_the_test_text(data: TextDataModule, tmp_path: Path):
    """Documents that validation has are of the training text, which all of a compressor's past is."""
    rows = "\n".join(f'{{"text": "{TRAIN[7 * i : 90 + 7 * i]}"}}' for i in range(20))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    sources = {"train": Source(str(tmp_path / "rows.jsonl")), "test": Source(str(tmp_path / "val.txt"))}
    options = {"tokenizer": "bytes", "block_size": 16, "cache_dir": str(tmp_path / "cache"), "clean": False}
    dealt = TextDataModule(**sources, split=Split(train=0.5, val=0.5), **options)
    dealt.prepare_data()
    read = [text for split in ("train", "val") for text in dealt.texts(split)]
    assert len(read) == 20
    peers = peers_of(dealt, "test")
    assert peers is not None
    assert peers.lzma == bits_per_byte(lzma_size, VAL.encode(), after="\n".join(read).encode())


def test_a_compressor_that_fails_is_left_out(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A file of that name that is not zpaq."""
    script = tmp_path / "bin" / "zpaq"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    with caplog.at_level("INFO"):
        found = _of_compressors(VAL.encode() * 500, after=TRAIN.encode())
    assert found["zpaq"] is None
    assert found["lzma"] is not None
    assert "zpaq is left out" in caplog.text
