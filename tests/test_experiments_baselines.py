"""What a memory must beat is what it says it is, and is scored on the same tokens."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import baselines, counted, memory, plans, report, store, untrained
from experiments.memory import Plan
from experiments.runs import Training, blocks, read
from experiments.texts import Texts, prepare
from lightning_app.memory.model import MemoryLM
from lightning_app.models.ngrams import UNKNOWN, NGramCounts
from lightning_app.peers import token_ids
from tests.test_experiments import article


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    train, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train.write_text(" \n" + "".join(article(f"A{i}", i, words=400) for i in range(3)))
    heldout.write_text("".join(article(f"B{i}", 10 + i) for i in range(4)))
    small = Training(block_size=16, batch_size=4, group=2, steps=2, warmup_steps=1, validations=1, validation_blocks=4)
    model = {"embedding_dim": 16, "layers": 1, "heads": 2}
    return Plan(
        str(train),
        str(heldout),
        seeds=(0,),
        vocab_size=300,
        model=model,
        training=small,
        further=small,
        scored_blocks=8,
    )


@pytest.fixture
def texts(plan: Plan, tmp_path: Path) -> Texts:
    return prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)


def plain(plan: Plan) -> MemoryLM:
    torch.manual_seed(0)
    return memory.new_model("no memory", plan)


def test_counts_see_the_tokens_before_each_across_blocks():
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, size=400))
    counts = baselines.counts_of(ids, 5)
    p = baselines.p_of_next(counts, ids[:50])
    assert len(p) == 49
    for i in (1, 2, 4, 30, 49):
        context = [UNKNOWN] * max(0, 4 - i) + ids[max(0, i - 4) : i].tolist()
        assert p[i - 1] == pytest.approx(float(counts.distribution(torch.tensor([context]))[0, ids[i]]))


def test_they_are_of_the_tokens_that_the_model_is_scored_on(plan: Plan, texts: Texts):
    scores = read(plain(plan), list(blocks(texts.test, 16)))
    ids = token_ids(texts.test)
    assert ids[1:].tolist() == scores.targets.tolist()
    p = baselines.p_of_next(baselines.counts_of(token_ids(texts.train), 300), ids)
    assert float(-p.log().mean()) < 0.8 * scores.nats.mean()  # a model that has learned nothing


def test_what_was_read_counts_from_then_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(untrained, "AT_ONCE", 7)
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, size=40))
    p = untrained.so_far(ids, 3, 5)
    counts = NGramCounts.of(ids[:21], order=3, vocab_size=5)
    for i in (21, 24, 27):
        assert float(p[i]) == pytest.approx(float(counts.distribution(ids[None, i - 2 : i])[0, ids[i]]))
    assert len(p) == 40
    assert p[:7].tolist() == pytest.approx([0.2] * 7)  # nothing is known


def test_it_stands_beside_what_is_trained(texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = {"mine": untrained.Text([texts.train], texts.val, texts.test)}
    untrained.keep(tmp_path, of, texts.tokenizer)
    first = untrained.told(tmp_path)
    rows = dict(row.strip("| ").split(" | ") for row in first.splitlines()[4:7])
    assert list(rows) == ["n-grams", "n-grams + cache", "PPMd"]
    assert float(rows["n-grams + cache"]) <= float(rows["n-grams"]) < 8
    monkeypatch.setattr(untrained, "_of", None)  # it is done once
    untrained.keep(tmp_path, of, texts.tokenizer)
    assert untrained.told(tmp_path) == first


def test_mixtures_by_hand():
    """The counts know all, and of the two caches the second is right twice in three."""
    even, sure = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 0.999, dtype=torch.float64)
    caches = torch.stack([torch.full_like(even, 0.01), torch.tensor([0.9, 0.9, 0.1], dtype=torch.float64)], dim=1)
    found = counted.mixtures(counted.Sides(even, sure, caches), counted.Sides(even, even / 2, caches))
    assert found[counted.ALONE].p.tolist() == [0.25] * 3
    assert found[counted.COUNTS].weights == pytest.approx([0, 1], abs=1e-3)
    assert found[counted.COUNTS].p.tolist() == pytest.approx([0.25] * 3, abs=1e-3)
    others = counted.mixtures(counted.Sides(even, even, caches), counted.Sides(even, even, caches))[counted.WITH_CACHE]
    assert others.theta == 1
    assert counted.facts(others, (2.0, 4.0))["theta"] == 4.0
    assert len(others.weights) == 3
    assert others.tuning_nats == pytest.approx(float(-others.p.log().mean()))


def test_a_model_learns_what_it_has_read_and_is_the_old_one_afterwards(plan: Plan, texts: Texts):
    model = plain(plan)
    some = list(blocks(texts.test, 16, at_most=8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fixed = read(model, some).nats
    scores = baselines.adapted(model, some, 3e-3)
    assert scores.nats[:16] == pytest.approx(fixed[:16], abs=1e-5)
    assert scores.nats[64:].mean() < fixed[64:].mean() - 0.05
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_the_rate_is_chosen_on_the_other_text(plan: Plan, texts: Texts):
    record, scores = baselines.dynamic(
        plain(plan), memory.tuning_blocks(texts, plan), memory.scored_blocks(texts, plan)
    )
    assert record["lr"] == max(baselines.RATES)  # an untrained model has much to learn
    assert len(scores.nats) == 8 * 16


def test_a_longer_context_is_scored_on_the_same_tokens(plan: Plan, texts: Texts):
    usual, longer = (memory.scored_blocks(texts, plan, arm) for arm in (memory.PLAIN, memory.LONGER))
    assert (len(usual), len(longer)) == (8, 2)
    assert torch.cat([b.targets[0] for b in usual]).equal(torch.cat([b.targets[0] for b in longer]))
    training = memory.training_of(plan, memory.LONGER)
    assert (training.block_size, training.batch_size, training.group) == (64, 1, 1)
    assert memory.new_model(memory.LONGER, plan).max_length == 64


def test_ppmd_knows_the_text_that_it_has_learned(tmp_path: Path):
    pytest.importorskip("pyppmd")
    learned, other = tmp_path / "train.txt", tmp_path / "other.txt"
    learned.write_text(article("A", 0, words=400))
    other.write_text(article("B", 1, words=400))
    known, new = (baselines.ppmd(str(learned), str(learned), str(path)) for path in (learned, other))
    assert known is not None
    assert new is not None
    assert known["test_bpb"] < 0.7 * new["test_bpb"]


def test_a_compressor_has_a_row_without_an_interval(tmp_path: Path, plan: Plan):
    common = {"parameters": 10, "memory_bytes": 0, "seed": 0}
    of_tokens = {"seconds_per_token": 0.001, "tokens": 2, "nats": [2.0, 2.0], "helped": 0.0, "hurt": 0.0}
    store.append(tmp_path, {"arm": "no memory", "test_bpb": 0.7, **of_tokens, **common})
    store.append(tmp_path, {"arm": baselines.PPMD, "test_bpb": 0.9, **common})
    results = report.Results(tmp_path)
    assert report._row(results, baselines.PPMD) == "| PPMd | 1 | 10 | 0.9000 ± 0.0000 |  |  | 0 |  |"
    assert "| no memory | 1 |" in report._main_table(results)
    plans.begin(tmp_path, plan.rules, quick=True, allow_uncommitted=False)
    page = report.write(tmp_path, asdict(plan), tmp_path / "docs", command="this test")
    assert "nan" not in page
