"""Continual learning and novelty run in small, go on where they were interrupted, and compute what they say."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import arms, art_page, continual, levels, novelty, store
from experiments.arms import EWC, EWC_ARM, FROZEN, PLAIN, RANDOM, REHEARSAL, REPLAY, RandomTexts, Trial
from experiments.continual import Job, Plan
from experiments.domains import PIECE, in_three, pieces, prepare_domains
from experiments.levels import at_level, best_trial, crossing
from experiments.runs import Training
from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.training.compositions import CausalLM
from tests.test_experiments import article

TRIED = (PLAIN, "ART, drift per token", REHEARSAL, RANDOM, EWC_ARM, REPLAY, FROZEN)


def texts(tmp_path: Path) -> tuple[str, str, str]:
    """Paths of a first domain, of held-out text of it, and of a second one."""
    first, heldout, second = (tmp_path / f"{name}.txt" for name in ("first", "heldout", "second"))
    first.write_text("".join(article(f"A{i}", i, words=400) for i in range(3)))
    heldout.write_text("".join(article(f"B{i}", 10 + i) for i in range(4)))
    speeches = [f"KING {i}:\nwhat say you, {i * 7919 % 101} of you?\n" for i in range(900)]
    second.write_text("\n".join(speeches))
    return str(first), str(heldout), str(second)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        *texts(tmp_path),
        seeds=(0, 1),
        vocab_size=300,
        model={"embedding_dim": 16, "layers": 1, "heads": 2},
        before=Training(block_size=16, batch_size=4, group=1, steps=3, warmup_steps=1),
        steps=4,
        warmup_steps=1,
        points=2,
        blocks=20,
        probes=5,
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials of some arms, and few texts."""
    monkeypatch.setattr(continual, "ARMS", TRIED)
    for module in (continual, levels):
        monkeypatch.setattr(module, "trials", lambda arm: [Trial(1e-3), Trial(2e-3, 0.1)])
    monkeypatch.setattr(arms, "SHOWN", 40)
    monkeypatch.setattr(continual, "FISHER_SEQUENCES", 4)
    monkeypatch.setattr(novelty, "LENGTHS", (16, 8))
    monkeypatch.setattr(novelty, "SEQUENCES", 30)
    monkeypatch.setattr(novelty, "BYTES", 2000)


def run(plan: Plan, folder: Path) -> None:
    for do, jobs in continual.jobs(plan, folder):
        for job in jobs:
            do(job)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_all_arms_run_in_small_go_on_and_become_a_page(plan: Plan, tmp_path: Path):
    folder = tmp_path / "work"
    (folder / "novelty").mkdir(parents=True)
    run(plan, folder)
    found = store.records(folder)
    assert len(found) == len(TRIED) * (2 + len(plan.seeds))
    final = [record for record in found if record["trial"] is None]
    assert {record["arm"] for record in final} == set(TRIED)
    for record in final:
        assert len(record["first"]) == len(record["second"]) == len(record["nats"]) == 3
        total = np.sum(record["nats"], axis=1) / np.sum(record["scale"])
        assert np.allclose(total, record["first"])
        assert (record["drift"] > 0) == (record["arm"] != FROZEN)
    starts = {record["seed"]: record["first"][0] for record in final}
    assert all(record["first"][0] == pytest.approx(starts[record["seed"]], abs=1e-6) for record in final)
    frozen = next(record for record in final if record["arm"] == FROZEN)
    assert len(set(frozen["first"])) == 1
    assert frozen["second"][-1] != frozen["second"][0]

    path = folder / store.RESULTS
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # a crash
    run(plan, folder)
    again = store.records(folder)
    assert len(again) == len(found)
    assert again[-1]["first"] == pytest.approx(found[-1]["first"], abs=1e-6)

    for seed in plan.seeds:
        novelty.run_job(Job(plan, folder, seed, PLAIN, None))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "art.md").write_text(f"# How it works\n\n{art_page.SECTION}\n\nolder results\n")
    continual.keep_untrained(plan, folder)
    page = art_page.write(folder, asdict(plan), tmp_path / "docs", command="this test")
    assert (tmp_path / "docs" / art_page.PICTURE).stat().st_size > 10_000
    whole = (tmp_path / "docs" / "art.md").read_text()
    assert whole == f"# How it works\n\n{page}"
    for words in (
        *TRIED,
        "### Trials",
        "### Novelty",
        "Mahalanobis",
        "random bytes",
        "### Clusters",
        "k-means",
        "| n-grams + cache |",
    ):
        assert words in page


def test_an_arm_is_compared_where_it_has_learned_as_much():
    assert crossing([5.0, 4.0, 2.0], 3.0) == (1, 0.5)
    assert crossing([5.0, 4.0, 2.0], 1.0) is None
    record = {"second": [5.0, 4.0, 2.0], "first": [1.0, 1.5, 2.5]}
    assert at_level(record, 3.0) == 2.0
    assert at_level(record, 1.0) is None


def test_the_trial_that_forgets_least_at_the_level_is_chosen():
    def record(arm: str, trial: int, first: list[float], second: list[float]) -> store.Record:
        return {"arm": arm, "trial": trial, "first": first, "second": second}

    plain = [record(PLAIN, i, [1.0, 2.0], [5.0, 3.0]) for i in range(4)]
    mine = [
        record("EWC", 0, [1.0, 1.1], [5.0, 4.0]),  # never there
        record("EWC", 1, [1.0, 1.8], [5.0, 3.0]),
        record("EWC", 2, [1.0, 2.5], [5.0, 2.0]),  # there at 1 + 1.5 x (5 - 3.03) / 3 = 1.985
        record("EWC", 3, [1.0, 1.9], [5.0, 3.0]),
    ]
    assert best_trial("EWC", [*plain, *mine]) == 1  # at the level, 3.03: 1.788, 1.985 (2) and 1.887 (3)
    assert best_trial("EWC", [*plain, mine[0], record("EWC", 1, [1.0, 3.0], [5.0, 3.9])]) == 1  # the one that learned


def test_the_page_says_what_the_records_say(tmp_path: Path):
    """Two documents, one seed; plain forgets 1.0 and 3.0 nats of 4 per bit per byte where it has learned enough."""

    def record(arm: str, nats: list[list[float]], second: list[float]) -> store.Record:
        first = [sum(point) / 4 for point in nats]
        return {
            "arm": arm,
            "seed": 0,
            "trial": None,
            "chosen": 0,
            "lr": 1e-3,
            "strength": 0.0,
            "scale": [1.0, 3.0],
            "first": first,
            "second": second,
            "nats": nats,
            "drift": 0.5,
            "train_seconds": 1.0,
        }

    store.append(tmp_path, record(PLAIN, [[2, 6], [3, 9], [3, 9]], [5.0, 3.03, 3.0]))  # the level is 3.03
    store.append(tmp_path, record(EWC_ARM, [[2, 6], [2.5, 8.5], [2.5, 8.5]], [5.0, 3.03, 2.0]))  # forgets 3 of 4
    store.append(tmp_path, record(REHEARSAL, [[2, 6], [2, 6], [2, 8]], [5.0, 4.03, 2.03]))  # half way: 1 of 4
    store.append(tmp_path, record("ART, drift", [[2, 6], [4, 10], [4, 10]], [5.0, 3.03, 2.0]))  # 6 of 4
    found = art_page.Continual.of(tmp_path)
    assert found.level(0) == pytest.approx(3.03)
    less = {arm: found.less(arm, PLAIN) for arm in found.by_arm}
    assert [less[arm].mean for arm in (PLAIN, EWC_ARM, REHEARSAL, "ART, drift")] == pytest.approx([0, 25, 75, -50])  # type: ignore[union-attr]
    rehearsal = less[REHEARSAL]
    assert rehearsal is not None
    assert (rehearsal.low, rehearsal.high) == pytest.approx((66.67, 100), abs=0.01)  # of either document alone
    against_ewc = found.less(REHEARSAL, EWC_ARM)
    assert against_ewc is not None
    assert against_ewc.mean == pytest.approx(100 * 2 / 3)
    table = art_page._targets(found, 5).splitlines()
    rehearsed, drifted = (next(x for x in table if x.startswith(f"| {arm} |")) for arm in (REHEARSAL, "ART, drift"))
    assert ("| met |" in rehearsed, rehearsed.endswith("| yes |")) == (True, True)
    assert ("| **missed** |" in drifted, drifted.endswith("| no |")) == (True, True)
    assert "| -0.750 |" in art_page._row(found, EWC_ARM, 9)  # backward transfer: 8 nats before, 11 at the end, of 4


def test_the_art_of_the_targets_is_not_chosen_on_what_is_scored():
    def record(detector: str, to_choose: float, scored: float) -> store.Record:
        figures = {"auroc_to_choose": {"new": to_choose}, "auroc": {"new": scored}}
        return {"part": "novelty", "seed": 0, "length": 16, "detector": detector, **figures}

    records = [record("ART, a", 0.9, 0.6), record("ART, b", 0.8, 0.99), record("loss", 0.5, 0.5)]
    page = art_page._novelty_targets(records)
    assert "| ART, a (of 2 " in page
    assert "0.6000 on the worst | **missed** |" in page


def test_five_per_cent_of_the_rows_are_replayed(tmp_path: Path):
    plan = Plan(*texts(tmp_path), vocab_size=300, before=Training(block_size=16, batch_size=4, group=1))
    domains = prepare_domains(plan.train, plan.heldout, plan.second, vocab_size=300, folder=tmp_path)
    old = set(domains.first.train.keys_of(np.arange(domains.first.train.n_documents)).tolist())
    batches = continual.batches_of(REPLAY, domains, plan, 0)
    keys = torch.cat([next(batches).document_keys[:, 0] for _ in range(1000)]).tolist()
    share = np.mean([key in old for key in keys])
    assert share == pytest.approx(arms.REPLAYED, abs=0.01)
    plain = continual.batches_of(PLAIN, domains, plan, 0)
    assert not any(key in old for _ in range(50) for key in next(plain).document_keys[:, 0].tolist())


def test_all_arms_have_as_many_trials():
    assert {len(arms.trials(arm)) for arm in arms.ARMS} == {4}
    assert all(len(set(arms.trials(arm))) == 4 for arm in arms.ARMS)


def small() -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocab_size=20, block_size=8, embedding_dim=8, layers=1, heads=2)


def test_ewc_holds_parameters_where_they_matter():
    model = small()
    fisher = [torch.full_like(p, float(i)) for i, p in enumerate(model.parameters())]
    ewc = EWC(1.0, fisher)
    ewc.attach(model)
    ewc.anchor()
    assert ewc.loss(None)["ewc"] == 0  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    expected = sum(0.5 * i * 0.01 * p.numel() for i, p in enumerate(model.parameters()))
    assert ewc.loss(None)["ewc"].item() == pytest.approx(expected, rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.slow
def test_drawn_fisher_information_is_the_exact_one_within_its_chance():
    """With one position the expectation over next tokens is a sum: of each parameter, over all tokens."""
    torch.manual_seed(0)
    V, n = 12, 800
    model = Decoder(vocab_size=V, block_size=4, embedding_dim=8, layers=1, heads=2).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() > 1 else 1)
    ids = torch.randint(0, V, (n, 1))
    drawn = torch.cat([f.flatten() for f in arms.fisher_information(model, [Batch.of_texts(ids)], seed=0)])
    exact, share = torch.zeros_like(drawn), torch.bincount(ids[:, 0], minlength=V) / n
    for token in range(V):
        log_p = model(torch.tensor([[token]]))[0, 0].log_softmax(-1)
        for wanted in range(V):
            gradients = torch.autograd.grad(-log_p[wanted], list(model.parameters()), retain_graph=True)
            squares = torch.cat([gradient.flatten().square() for gradient in gradients])
            exact += share[token] * log_p[wanted].exp().detach() * squares
    assert float(drawn.sum() / exact.sum()) == pytest.approx(1, abs=0.08)
    assert float(torch.stack([drawn, exact]).corrcoef()[0, 1]) > 0.99


def test_random_texts_take_the_place_of_typical_ones(tmp_path: Path):
    domains = prepare_domains(*texts(tmp_path), vocab_size=300, folder=tmp_path)
    regularizer = RandomTexts(lambda_art=0.1, rehearsal=1.0, vigilance=0.9)
    module = CausalLM(
        Decoder(vocab_size=300, block_size=16, embedding_dim=8, layers=1, heads=2), extensions=[regularizer]
    )
    arms.learn_categories(module, domains.first.train, 16, seed=0)
    kept = regularizer.art.texts[regularizer.art.texts[..., 0] >= 0]
    windows = TokenWindows(domains.first.train, 16)
    every = {tuple(row) for row in windows.__getitems__(list(range(len(windows)))).input_ids.tolist()}
    assert len(kept) > 3
    assert {tuple(text[:16]) for text in kept.tolist()} <= every
    before = regularizer.art.prototypes.clone()
    regularizer.learn(module.outputs(windows.__getitems__([0, 1])))
    assert torch.equal(regularizer.art.prototypes, before)


def test_a_long_text_is_cut_at_blank_lines_and_in_three(tmp_path: Path):
    path = tmp_path / "play.txt"
    speeches = [f"A {i}:\n" + "word " * 30 for i in range(300)]
    path.write_text("\n\n".join(speeches))
    cut = pieces(str(path))
    assert "".join(piece.text for piece in cut).split() == path.read_text().split()
    assert len(cut) > 5
    assert all(piece.text.startswith("A ") for piece in cut)
    assert min(len(piece.text) for piece in cut) >= PIECE // 2  # the last one too: it may be all that is scored
    train, val, test = in_three(cut)
    assert [*train, *val, *test] == cut
    assert len(val) == len(test) == round(0.1 * len(cut))
    with pytest.raises(InputError, match="2 piece"):
        in_three([Document("a", name="a"), Document("b", name="b")])


def test_auroc_false_alarms_and_purity_by_hand():
    known, new = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0, 5.0, 6.0])
    assert novelty.auroc(known, new) == 15 / 16
    assert novelty.false_alarms(known, new) == 0.25  # 95 % of the new lie above 2.725
    assert novelty.purity(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1])) == 4 / 5


def test_states_that_turn_have_drifted():
    before = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 2.0], [1.0, 0.0]])  # around (1, 1)
    assert continual.drift(before, before) == pytest.approx(0, abs=1e-6)
    assert continual.drift(before, 2 - before) == pytest.approx(2, abs=1e-6)
    assert math.isfinite(continual.drift(before, torch.zeros(4, 2)))
    assert json.dumps(continual.drift(before, before))
