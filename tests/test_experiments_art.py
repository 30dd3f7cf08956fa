"""Continual learning and novelty run in small, go on where they were interrupted, and compute what they say."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import art_page, chosen, continual, levels, store
from experiments.arms import ARMS, EWC_ARM, IN_BATCH, LIVE, LWF, ON_TOP, PLAIN, PROTOTYPES, SAMPLES, TEXTS
from experiments.chosen import BY_ART, BY_KMEANS
from experiments.continual import Job, Plan
from experiments.domains import PIECE, in_three, pieces, prepare_domains
from experiments.forgetting import Continual
from experiments.levels import Trial, at_level, best, crossing, inside, next_trial, tried
from experiments.runs import Training
from experiments.store import Stopwatch
from lightning_app.data.corpus import Document
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.training.compositions import CausalLM
from tests.test_experiments import article

MARGIN = "novelty, margin"
TRIED = (
    PLAIN,
    LIVE,
    TEXTS[BY_ART],
    TEXTS[BY_KMEANS],
    SAMPLES[BY_ART],
    PROTOTYPES[BY_ART],
    EWC_ARM,
    LWF,
    ON_TOP,
    MARGIN,
)


def texts(tmp_path: Path) -> tuple[str, str, str]:
    """Paths of a first domain, of held-out text of it, and of a second one."""
    first, heldout, second = (tmp_path / f"{name}.txt" for name in ("first", "heldout", "second"))
    first.write_text("".join(article(f"A{i}", i, words=400) for i in range(3)))
    heldout.write_text("".join(article(f"B{i}", 10 + i) for i in range(4)))
    speeches = [f"KING {i}:\nwhat say you, {i * 7919 % 101} of you?\n" for i in range(900)]
    second.write_text("\n".join(speeches))
    return str(first), str(heldout), str(second)


def small_plan(tmp_path: Path) -> Plan:
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
        sizes=chosen.Sizes(shown=40, tokens=100, prototypes=10, samples=4, fisher=4),
        trials=2,
        widen=False,
    )


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return small_plan(tmp_path)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some arms."""
    monkeypatch.setattr(continual, "ARMS", {arm: ARMS[arm] for arm in TRIED})


def run(plan: Plan, folder: Path) -> None:
    for do, jobs in continual.jobs(plan, folder):
        for job in jobs:
            do(job)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_all_arms_run_in_small_go_on_and_become_a_page(plan: Plan, tmp_path: Path):
    folder = tmp_path / "work"
    folder.mkdir()
    run(plan, folder)
    found = store.records(folder)
    seeds, n = len(plan.seeds), len(TRIED)
    assert len(found) == n * plan.trials + n * seeds + (n - 1) * seeds
    final = [record for record in found if record["trial"] is None]
    assert {record["arm"] for record in final} == set(TRIED)
    for record in final:
        assert len(record["first"]) == len(record["second"]) == len(record["nats"])
        total = np.sum(record["nats"], axis=1) / np.sum(record["scale"])
        assert np.allclose(total, record["first"])
        assert (np.array(record["absent"]) <= np.array(record["nats"])).all()
        assert record["drift"] > 0
        assert record["steps"] == plan.steps or record["part"] == "seconds"
        assert (record["novel"] is not None) == (record["arm"] == MARGIN)
    starts = {record["seed"]: record["first"][0] for record in final}
    assert all(record["first"][0] == pytest.approx(starts[record["seed"]], abs=1e-6) for record in final)

    path = folder / store.RESULTS
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # a crash
    run(plan, folder)
    assert len(store.records(folder)) == len(found)

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "art.md").write_text(f"# How it works\n\n{art_page.SECTION}\n\nolder results\n")
    continual.keep_untrained(plan, folder)
    page = art_page.write(folder, asdict(plan), tmp_path / "docs", command="this test")
    assert (tmp_path / "docs" / art_page.PICTURE).stat().st_size > 10_000
    assert (tmp_path / "docs" / art_page.RESULTS).read_text().count("\n") == len(found) + 1
    assert (tmp_path / "docs" / "art.md").read_text() == f"# How it works\n\n{page}"
    for words in (*TRIED[:-1], "### Trials", "### Targets", "### Equal CPU seconds", "| n-grams + cache |"):
        assert words in page


def test_an_arm_is_compared_where_it_has_learned_as_much():
    assert crossing([5.0, 4.0, 2.0], 3.0) == (1, 0.5)
    assert crossing([5.0, 4.0, 2.0], 1.0) is None
    record = {"second": [5.0, 4.0, 2.0], "first": [1.0, 1.5, 2.5]}
    assert at_level(record, 3.0) == 2.0
    assert at_level(record, 1.0) is None


def test_the_level_is_below_the_start_however_little_is_learned():
    assert levels.level_of([6.0, 4.0, 3.0]) == pytest.approx(3.03)
    assert levels.level_of([2.36, 2.35]) == pytest.approx(2.351)  # 1.01 x 2.35 is above 2.36


# Trials


def tried_out(arm: str, trial: int, strength: float, first: list[float], second: list[float]) -> store.Record:
    numbers = {"lr": 1e-3, "strength": strength}
    return {"arm": arm, "trial": trial, "seed": 0, "part": "trial", **numbers, "first": first, "second": second}


def test_the_trial_that_forgets_least_at_the_level_is_chosen():
    plain = [tried_out(PLAIN, i, i, [1.0, 2.0], [5.0, 3.0 - i]) for i in range(2)]  # the first one sets the level, 3.03
    mine = [
        tried_out(LWF, 0, 1.0, [1.0, 1.1], [5.0, 4.0]),  # never there
        tried_out(LWF, 1, 2.0, [1.0, 1.8], [5.0, 3.0]),
        tried_out(LWF, 2, 3.0, [1.0, 2.5], [5.0, 2.0]),  # there at 1 + 1.5 x (5 - 3.03) / 3 = 1.985
    ]
    assert best(tried(LWF, [*plain, *mine])).strength == 2.0
    others = [mine[0], tried_out(LWF, 1, 2.0, [1.0, 3.0], [5.0, 3.9])]
    assert best(tried(LWF, [*plain, *others])).strength == 2.0  # the one that learned more


def test_trials_walk_to_where_less_is_forgotten_and_are_as_many_for_each_arm():
    """But for EWC, which goes on until its best lies inside: here at strength 300 and half the first rate."""

    def walked(arm: str) -> dict[Trial, tuple[float, float]]:
        found: dict[Trial, tuple[float, float]] = {}
        while trial := next_trial(arm, found, start=Trial(2e-3, 1.0), at_most=6, widen=True):
            found[trial] = 0.0, abs(math.log(trial.strength / 300)) + abs(math.log(trial.lr / 1e-3))
        return found

    assert (len(walked(LWF)), inside(walked(LWF))) == (6, False)
    found = walked(EWC_ARM)
    assert 6 < len(found) <= levels.WIDENED
    assert inside(found)
    assert (best(found).lr, best(found).strength) == (1e-3, pytest.approx(300, rel=0.1))


def test_an_arm_without_a_strength_has_as_many_trials():
    found: dict[Trial, tuple[float, float]] = {}
    while trial := next_trial(PLAIN, found, start=Trial(1e-3), at_most=6, widen=True):
        found[trial] = 0.0, abs(math.log(trial.lr / 1.3e-3))
    assert len(found) == 6
    assert all(trial.strength == 0 for trial in found)
    assert inside(found)


# The page


def scored(arm: str, nats: list[list[float]], second: list[float], **more: object) -> store.Record:
    """Of two documents and one seed."""
    record = {"arm": arm, "seed": 0, "trial": None, "part": "steps", "lr": 1e-3, "strength": 0.0, "steps": 9}
    numbers = {
        "drift": 0.5,
        "train_seconds": 1.0,
        "setup_seconds": 0.0,
        "holds": 0,
        "old_matrix": 2.0,
        "absent_tokens": 0.25,
    }
    first = [sum(point) / 4 for point in nats]
    absent = [[x / 2 for x in point] for point in nats]
    texts = {"scale": [1.0, 3.0], "first": first, "second": second, "nats": nats, "absent": absent, "novel": None}
    return {**record, **numbers, **texts, **more}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Plain forgets 1.0 and 3.0 nats of 4 per bit per byte where it has learned enough; the level is 3.03."""
    art = TEXTS[BY_ART]
    for record in (
        scored(PLAIN, [[2, 6], [3, 9], [3, 9]], [5.0, 3.03, 3.0]),
        scored(EWC_ARM, [[2, 6], [2.5, 8.5], [2.5, 8.5]], [5.0, 3.03, 2.0]),  # forgets 3 of 4
        scored(art, [[2, 6], [2, 6], [2, 8]], [5.0, 4.03, 2.03]),  # half way: 1 of 4
        scored(MARGIN, [[2, 6], [4, 10], [4, 10]], [5.0, 3.03, 2.0], novel=0.3),
        tried_out(PLAIN, 0, 0.0, [1.0, 2.0], [5.0, 3.0]),
        tried_out(EWC_ARM, 0, 1.0, [1.0, 1.8], [5.0, 3.0]),
        tried_out(art, 0, 1.0, [1.0, 1.5], [5.0, 3.0]),
    ):
        store.append(tmp_path, record)
    return tmp_path


def test_the_page_says_what_the_records_say(results: Path):
    found, art = Continual.of(results), TEXTS[BY_ART]
    assert found.level(0) == pytest.approx(3.03)
    less = {arm: found.less(arm, PLAIN) for arm in (PLAIN, EWC_ARM, art)}
    assert [one.mean for one in less.values() if one] == pytest.approx([0, 25, 75])
    rehearsal = less[art]
    assert rehearsal is not None
    assert (rehearsal.low, rehearsal.high) == pytest.approx((66.67, 100), abs=0.01)  # of either document alone
    against_ewc = found.less(art, EWC_ARM)
    assert against_ewc is not None
    assert against_ewc.mean == pytest.approx(100 * 2 / 3)
    row = art_page._split_row(found, EWC_ARM)  # 8 nats before, 11 at the end, of 4; half of it on absent tokens
    assert row == [EWC_ARM, "0.750", "0.000", "0.375", "0.375", "50"]


def test_targets_are_told_as_met_or_missed(results: Path):
    records = store.records(results)
    told = art_page._targets(Continual.of(results), records, 5)
    free, categories = (next(x for x in told.splitlines() if words in x) for words in ("| EWC |", "against EWC"))
    assert free.endswith("| **missed** |")  # 25 % of the 50 %
    assert categories.endswith("| met |")
    assert "ART adds nothing" not in told
    worse = [r for r in records if r["arm"] != TEXTS[BY_ART] or r["trial"] is not None]
    worse.append(scored(TEXTS[BY_ART], [[2, 6], [3, 9], [3, 9]], [5.0, 3.03, 2.0]))
    (results / store.RESULTS).unlink()
    for record in worse:
        store.append(results, record)
    told = art_page._targets(Continual.of(results), worse, 5)
    assert "**ART adds nothing here: rehearsal, ART does not forget less than EWC.**" in told


def test_nothing_is_said_of_novelty_terms_that_were_mostly_off(results: Path):
    found, records = Continual.of(results), store.records(results)
    assert MARGIN not in found.by_arm
    told = art_page._novel(records)
    assert f"| {MARGIN} | 30.0 |" in told
    assert f"**Fewer than half of the new texts were novel to {MARGIN}: nothing is said of them.**" in told
    assert MARGIN not in art_page._arms(found, probes=5)
    trial = tried_out(MARGIN, 0, 0.3, [1.0, 1.5], [5.0, 3.0])
    assert MARGIN not in art_page._trials([*records, trial])
    dear = scored(MARGIN, [[2, 6], [4, 10], [4, 10]], [5.0, 3.03, 2.0], novel=0.9, part="seconds")
    store.append(results, dear)
    assert MARGIN not in Continual.of(results, "seconds").by_arm
    on = [{**record, "novel": 0.6} if record["arm"] == MARGIN else record for record in records]
    (results / store.RESULTS).unlink()
    for record in on:
        store.append(results, record)
    assert MARGIN in Continual.of(results).by_arm
    assert "nothing is said" not in art_page._novel(on)


# Steps and rows


def test_equal_seconds_are_fewer_steps_where_a_step_costs_more(plan: Plan, tmp_path: Path):
    plan = replace(plan, steps=200)
    records = [
        scored(PLAIN, [[1, 1]], [1.0], train_seconds=20.0),
        scored(LWF, [[1, 1]], [1.0], train_seconds=40.0),
        scored(SAMPLES[BY_ART], [[1, 1]], [1.0], train_seconds=20.0, setup_seconds=5.0),
        scored(EWC_ARM, [[1, 1]], [1.0], train_seconds=20.0, setup_seconds=50.0),
    ]
    steps = [continual.affordable(Job(plan, tmp_path, 0, r["arm"], "seconds"), records) for r in records]
    assert steps == [200, 100, 150, 1]
    trainings = [replace(plan, warmup_steps=50).training(n, 1e-3) for n in (200, 30, 1)]
    assert [one.warmup_steps for one in trainings] == [50, 7, 0]
    for one in trainings:  # a warm-up that is longer than the training is refused
        (first,) = itertools.islice(continual.fit(CausalLM(Decoder(**plan.decoder)), iter([]), one, Stopwatch()), 1)
        assert first == 0


def test_a_row_of_each_batch_is_replayed(plan: Plan, tmp_path: Path):
    domains = prepare_domains(plan.train, plan.heldout, plan.second, vocab_size=300, folder=tmp_path)
    old = set(domains.first.train.keys_of(np.arange(domains.first.train.n_documents)).tolist())
    both, training = (domains.first.train, domains.second.train), Training(block_size=128, batch_size=8, group=1)

    def old_rows(arm: str, n: int = 20) -> list[int]:
        batches = continual.batches_of(ARMS[arm], *both, training, 0)
        keys = [next(batches).document_keys[:, 0].tolist() for _ in range(n)]
        return [sum(key in old for key in some) for some in keys]

    assert old_rows(IN_BATCH) == [1] * 20  # 128 tokens, as 4 texts of 32
    assert old_rows(PLAIN) == old_rows(ON_TOP) == [0] * 20


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


def test_states_that_turn_have_drifted():
    before = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 2.0], [1.0, 0.0]])  # around (1, 1)
    assert continual.drift(before, before) == pytest.approx(0, abs=1e-6)
    assert continual.drift(before, 2 - before) == pytest.approx(2, abs=1e-6)
    assert math.isfinite(continual.drift(before, torch.zeros(4, 2)))
    assert json.dumps(continual.drift(before, before))
