"""A model that does not use its context is no subject: the arms do not run, and the page says so."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import entry, memory, report, runs, store
from experiments.memory import Job, Plan
from experiments.plans import read
from experiments.runs import Scores, Training, train
from experiments.texts import prepare
from lightning_app.data.batch import Batch
from lightning_app.memory.model import MemoryLM
from lightning_app.models.decoder import Decoder
from tests.test_experiments import article


def scores(nats: np.ndarray, in_block: np.ndarray) -> Scores:
    none = np.zeros(len(nats), dtype=np.int64)
    return Scores(nats, none, none, none, in_block)


def test_the_gain_by_hand():
    """5 nats before position 8, 3 up to 31, 2 up to 63 and 1 from there on, in two blocks."""
    in_block = np.tile(np.arange(128), 2)
    nats = np.select([in_block < 8, in_block < 32, in_block < 64], [5.0, 3.0, 2.0], 1.0)
    assert entry.context_gain(scores(nats, in_block)) == 2.0
    assert np.isnan(entry.context_gain(scores(nats[:16], in_block[:16])))


@pytest.mark.parametrize("length", [128, 512, 100])
def test_the_same_tokens_are_compared(length: int, monkeypatch: pytest.MonkeyPatch):
    """Each token of context is worth 0.01 nats; the later tokens of a block are harder by 5 nats."""

    def reading(_: object, batches: list[Batch]) -> Scores:
        T = [torch.arange(batch.input_ids.shape[1]) for batch in batches]
        return Scores.of(batches, [5.0 * (b.input_ids >= 40) - t / 100 for b, t in zip(batches, T, strict=True)])

    monkeypatch.setattr(entry, "read", reading)
    block = Batch.of(torch.arange(length + 1)[None], positions=torch.arange(length)[None])
    late = np.arange(64, min(length, 128))
    gain = np.mean(late - (8 + (late - 64) % 24)) / 100
    model = MemoryLM(Decoder(vocab_size=length + 1, block_size=8, embedding_dim=8, layers=1, heads=1), [])
    assert entry.gain_on_the_same_tokens(model, [block, block]) == pytest.approx(gain)
    assert entry.context_gain(reading(None, [block])) < -4


def test_positions_are_those_within_the_block():
    ids = torch.arange(8)[None]
    targets = torch.tensor([[1, 2, -100, 4, 5, 6, 7, -100]])
    batch = Batch(
        input_ids=ids,
        targets=targets,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        positions=ids + 90,
        document_ids=torch.zeros_like(ids),
        document_keys=torch.zeros_like(ids),
    )
    found = Scores.of([batch, batch], [torch.zeros(1, 8)] * 2)
    assert found.in_block.tolist() == [0, 1, 3, 4, 5, 6] * 2
    assert found.positions.tolist() == [90, 91, 93, 94, 95, 96] * 2


@pytest.mark.parametrize(("nats", "subject"), [(0.05, False), (0.15, True)])
def test_the_page_says_whether_there_is_a_subject(nats: float, subject: bool, tmp_path: Path):
    rules = read("memory")
    for seed, less in ((0, 0.04), (1, 0.0), (0, 0.0)):  # a seed that was done twice counts once
        store.append(tmp_path, {"seed": seed, "nats": nats - less}, entry.GAINS)
    assert entry.has_subject(tmp_path, rules) is subject
    assert ("no subject" in entry.told(tmp_path, rules)) is not subject
    assert entry.proceed(tmp_path, rules, quick=False) is subject
    assert entry.proceed(tmp_path, rules, quick=True)


def test_short_blocks_say_nothing(tmp_path: Path):
    entry.keep(tmp_path, 0, entry.context_gain(scores(np.ones(64), np.arange(64))))
    assert entry.told(tmp_path, read("memory")).startswith("**Blocks of 64 tokens or fewer do not say")
    assert not entry.proceed(tmp_path, read("memory"), quick=False)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    train_text, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train_text.write_text(" \n" + "".join(article(f"A{i}", i, words=400) for i in range(3)))
    heldout.write_text("".join(article(f"B{i}", 10 + i) for i in range(6)))
    small = Training(block_size=128, batch_size=2, group=2, steps=3, warmup_steps=1, validations=3, validation_blocks=3)
    model = {"embedding_dim": 16, "layers": 1, "heads": 2}
    return Plan(
        str(train_text),
        str(heldout),
        seeds=(0,),
        vocab_size=300,
        model=model,
        training=small,
        further=small,
        scored_blocks=8,
    )


def test_without_a_subject_no_arm_runs_and_the_page_is_written(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(memory, "tune_allocator", lambda: True)
    plan = replace(plan, rules=replace(plan.rules, least_gain=9.0))
    folder = tmp_path / "work"
    folder.mkdir()
    ran: list[str | None] = []

    def do(job: Job) -> None:
        ran.append(job.arm)
        memory.run_job(job)

    memory.run_all(plan, folder, workers=1, do=do)
    assert ran == ["no memory"]
    assert "at least 9 are asked for. So this experiment has no subject." in capsys.readouterr().out
    page = report.write(folder, asdict(plan), tmp_path, command="this test")
    assert "**So this experiment has no subject.**" in page
    assert "\n| no memory | 1 |" in page
    assert "**Planned and not run: further training, " in page


def test_training_ends_when_validation_falls_no_more(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)
    figures = iter([3.0, 2.0, 2.5, 2.0, 1.0, 0.5])
    monkeypatch.setattr(Scores, "bits_per_byte", lambda *_: next(figures))
    monkeypatch.setattr(runs, "read", lambda *_: scores(np.zeros(1), np.zeros(1)))
    options = replace(plan.training, steps=6, validations=6, patience=2)
    found = train(memory.new_model("no memory", plan), texts, options, seed=0)
    assert (found["val_bpb"], found["best_step"], found["last_step"]) == (2.0, 2, 4)
    assert found["train_seconds"] > 0


def test_an_arm_whose_best_state_is_its_last_was_not_trained_to_its_end():
    def record(best: int) -> store.Record:
        return {"best_step": best, "last_step": 8, "train_seconds": 2.0}

    assert report._training("trime", [record(8), record(4)]) == "| trime | 8 | 6 | 2 | **1 of 2** |"
    assert report._training("trime", [record(4)]) == "| trime | 8 | 4 | 2 | 1 of 1 |"
