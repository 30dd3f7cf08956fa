"""Validation text that is training text, too, is counted and named."""

import logging
import random

from lightning_app.data.corpus import Document
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.overlap import Overlap, overlap


def words(n, seed):
    drawn = random.Random(seed)
    return " ".join(f"w{drawn.randrange(1000)}" for _ in range(n))


def runs(text):
    listed = text.split()
    return [tuple(listed[i : i + 8]) for i in range(len(listed) - 7)]


def test_documents_and_runs_are_those_of_a_plain_count():
    shared, mixed = words(100, 0), f"{words(30, 1)} {words(20, 2)}"
    training = [Document(shared), Document(f"{words(40, 3)} {words(20, 2)}"), Document("short one")]
    documents = [Document(f" {shared}\n"), Document(mixed), Document(words(50, 4)), Document("short one")]
    known = {run for document in training for run in runs(document.text)}
    ours = [run for document in documents for run in runs(document.text)]
    wanted = Overlap(4, 2, len(ours), sum(run in known for run in ours))
    assert wanted.same_runs == 93 + 13
    assert overlap(documents, training) == wanted
    assert overlap(documents[2:3], training).sentence("val") is None
    assert overlap([], training) == Overlap(0, 0, 0, 0)


def test_it_is_named_when_the_data_are_prepared(tmp_path, caplog):
    (tmp_path / "a.txt").write_text(words(100, 0))
    (tmp_path / "b.txt").write_text(words(100, 1))
    for val, said in (("a.txt", 1), ("b.txt", 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            sources = {"train": {"path": str(tmp_path / "a.txt")}, "val": {"path": str(tmp_path / val)}}
            TextDataModule(**sources, block_size=8, cache_dir=str(tmp_path / "cache")).prepare_data()
        assert caplog.text.count("data.val: 1 of 1 documents are training text, too, and 100% of its runs") == said
