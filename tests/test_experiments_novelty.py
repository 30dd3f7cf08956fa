"""Texts at several distances, AUROC with intervals over documents, and what the page says of ART and the loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import clusters, near, novelty, novelty_page, store
from experiments.auroc import Scored, auroc, interval, pairs, wins
from experiments.continual import Job
from experiments.domains import prepare_domains
from experiments.near import ANOTHER, HALF, NOISE, SECOND
from lightning_app.data.corpus import Document
from tests.test_experiments_art import small_plan


def test_auroc_by_hand_and_by_documents():
    known, new = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0, 5.0, 3.0])
    assert auroc(known, new) == 14.5 / 16
    mine = Scored(known.numpy(), np.array([0, 0, 1, 1]), 3)  # the third document has no sequence
    others = Scored(new.numpy(), np.array([0, 1, 1, 2]), 3)
    won, of = wins(mine, others), pairs(mine, others)
    assert won.tolist() == [[2, 4, 2], [1, 4, 1.5], [0, 0, 0]]
    assert of.tolist() == [[2, 4, 2], [2, 4, 2], [0, 0, 0]]
    assert won.sum() / of.sum() == auroc(known, new)


def test_an_interval_is_over_documents_and_a_difference_is_paired():
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), 5)
    known = Scored(generator.normal(size=100), documents, 20)
    of = pairs(known, known)
    shifts = np.repeat(generator.normal(1, 1, size=20), 5)  # of whole documents: more than 100 sequences would say
    new = Scored(generator.normal(size=100) + shifts, documents, 20)
    one = interval(wins(known, new)[None], of, same=False)
    assert one.low < one.mean < one.high
    assert one.high - one.low > 0.08
    same = wins(known, new)[None]
    assert interval(same, of, same, same=True).mean == 0
    better = wins(known, Scored(new.scores + 0.5, documents, 20))[None]
    less = interval(better, of, same, same=True)
    assert 0 < less.low < less.high < one.high - one.low
    two = interval(np.concatenate([same, better]), of, same=False)
    assert two.seeds == 2
    assert two.high - two.low > one.high - one.low  # two seeds that differ say little


def test_an_article_is_cut_into_what_is_learned_held_out_and_left():
    text = " ".join(f"w{i:03d}" for i in range(200))
    found = near.cut(Document(text), 50)
    assert found is not None
    assert "".join(near.chunks(text, 50)) == text
    words = {name: set(" ".join(parts).split()) for name, parts in (("l", found.learned), ("k", found.known))}
    assert not words["l"] & words["k"]
    assert not (words["l"] | words["k"]) & set(found.other.split())
    assert len(words["l"]) > 2 * len(words["k"]) > 0
    assert text.endswith(found.other)
    assert near.cut(Document("short"), 50) is None


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "BYTES", 300)
    monkeypatch.setattr(novelty, "LENGTHS", (16, 8))


def test_texts_are_new_at_four_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small(monkeypatch)
    plan = small_plan(tmp_path)
    domains = prepare_domains(plan.train, plan.heldout, plan.second, vocab_size=300, folder=tmp_path)
    found = near.distances(plan.train, domains.first.test, domains, tmp_path)
    assert list(found.new) == [HALF, ANOTHER, SECOND, NOISE]
    assert found.known.n == found.new[HALF].n == 3  # the same articles
    assert found.learned.tokens.n_tokens > 2 * found.known.tokens.n_tokens
    assert found.new[NOISE].n == near.NOISES


@pytest.mark.slow
def test_novelty_runs_in_small_goes_on_and_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small(monkeypatch)
    plan = small_plan(tmp_path)
    folder = tmp_path / "work"
    (folder / "novelty").mkdir(parents=True)
    for _ in range(2):
        for seed in plan.seeds:
            novelty.run_job(Job(plan, folder, seed, "plain", "first"))
    found = store.records(folder / "novelty")
    assert len(found) == len(plan.seeds) * (5 * 4 * 2 + 1)  # detectors, distances, lengths; clusters
    page = "\n\n".join(novelty_page.parts(folder))
    for words in (HALF, ANOTHER, SECOND, NOISE, "Mahalanobis", "nearest state", "k-means", "### Clusters", "16 tokens"):
        assert words in page
    assert "nan" not in page


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_art_above_the_loss_is_told(shift: float, tmp_path: Path):
    """Of ten documents with four sequences each."""
    generator, documents = np.random.default_rng(0), np.repeat(np.arange(10), 4)
    known, new = (Scored(generator.normal(size=40) + x, documents, 10) for x in (0.0, shift))
    known_loss, new_loss = (Scored(generator.normal(size=40), documents, 10) for _ in range(2))
    folder = tmp_path / "novelty"
    folder.mkdir()
    of = {"16, " + HALF: pairs(known, new)}
    won = {f"16, {HALF}, ART": wins(known, new), f"16, {HALF}, loss": wins(known_loss, new_loss)}
    np.savez(folder / "wins-0.npz", **of, **won)
    for detector in ("ART", "loss"):
        about = {"part": "novelty", "seed": 0, "length": 16, "new": HALF, "holds": ""}
        store.append(folder, {**about, "detector": detector, "known": 40, "of_new": 40})
    page = "\n".join(novelty_page.parts(tmp_path))
    assert (f"met: {HALF}, 16 tokens" in page) == (shift > 0)
    assert ("**missed: on no near pair does ART know better than the loss**" in page) == (shift < 0)
    assert ("| above |" in page, "| below |" in page) == (shift > 0, shift < 0)


def test_clusters_of_three_groups_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clusters, "NETWORK", {"vigilance": 0.9})
    assert clusters.purity(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1])) == 4 / 5
    centres = 10 * torch.eye(3).repeat_interleave(20, dim=0)
    torch.manual_seed(0)
    found = clusters.clusters(centres + 0.1 * torch.randn(60, 3), [np.arange(20)] * 3, seed=0)
    assert found["art_purity_domain"] == found["kmeans_purity_domain"] == 1
    assert found["texts"] == 60
