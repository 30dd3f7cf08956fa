"""The experiment on plasticity runs in small, goes on where it was interrupted, and its page says what was found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import criteria, judges, plasticity, plasticity_page, sections, stabilization, store
from experiments.plasticity_page import Results
from experiments.plasticity_plan import (
    ALL_OFF,
    DEFAULT,
    FINISHED,
    FROZEN,
    OTHER_ORDER,
    RANDOM,
    SMALLER,
    STRATEGIES,
    UNPRUNED,
    Arm,
    Plan,
    arms,
)
from experiments.plasticity_runs import (
    Evidence,
    Run,
    prune,
    remove_all,
    remove_evenly,
    risen,
    spread_evenly,
    taught_by,
)
from experiments.runs import Training
from lightning_app.plasticity.kinds import units_of
from tests.test_experiments_art import texts

SMALL = [
    Arm(UNPRUNED),
    Arm(OTHER_ORDER),
    Arm(ALL_OFF, 1.0),
    Arm(DEFAULT, 0.3),
    Arm(SMALLER, 0.3),
    Arm("random 0", 0.3),
    Arm(DEFAULT, 0.5, regrow=1),
    Arm(DEFAULT, 0.5, layer_factor=3.0),
    Arm(DEFAULT, 0.5, neurons=0.5),
    Arm(DEFAULT, 0.5, rising=True),
    Arm(DEFAULT, 0.75),
    Arm(DEFAULT, 0.75, teacher=FROZEN),
    Arm(DEFAULT, 0.75, teacher=FINISHED),
    Arm(UNPRUNED, teacher=FROZEN),
    Arm(DEFAULT, 0.75, longer=True),
]
TINY = {"embedding_dim": 16, "layers": 2, "heads": 4}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        *texts(tmp_path)[:2],
        seeds=(0, 1),
        vocab_size=300,
        model=TINY,
        training=Training(block_size=16, batch_size=4, group=1, steps=6, warmup_steps=2),
        finetuning=4,
        rises=(3, 2),
        sample=8,
        blocks=10,
        splits=2,
        criteria=replace(criteria.quick(criteria.Options()), model=TINY, steps=24, warmup=6, finetuning=3, training=4),
    )


def folder_of(plan: Plan, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_arms_run_in_small_go_on_and_become_a_page(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = folder_of(plan, tmp_path)
    monkeypatch.setattr(plasticity, "arms", lambda: SMALL)
    plasticity.run_all(plan, folder, workers=1)
    records = {(r["arm"], r["seed"]): r for r in store.records(folder)}
    assert len(records) == 2 * (1 + len(SMALL) + len(criteria.ARMS))
    unpruned, pruned = records[UNPRUNED, 0], records["Taylor, 30%", 0]
    assert (unpruned["heads"], pruned["heads"], records["Taylor, 50%, 1 regrown", 0]["heads"]) == (8, 6, 4)
    assert records["Taylor, 50%, rising", 0]["heads"] == 4
    assert records["smaller from scratch, 30%", 0]["heads"] == 6
    assert records["smaller from scratch, 30%", 0]["steps"] == 10
    assert records[ALL_OFF, 0]["heads"] == 0
    assert records["Taylor, 50%, 50% of neurons", 0]["neurons"] == 64  # of 2 x 64
    assert unpruned["parameters"] == unpruned["parameters_whole"] > pruned["parameters"]
    assert unpruned["test"] != records[OTHER_ORDER, 0]["test"]
    assert records["Taylor, 75%, taught", 0]["test"] != records["Taylor, 75%, taught by the finished", 0]["test"]
    longer = records["Taylor, 75%, longer", 0]
    assert longer["steps"] == round(longer["times_longer"] * plan.finetuning) > plan.finetuning
    evenly = records[criteria.EVENLY, 0]
    assert evenly["pruned_at"] == [8, 16]
    assert evenly["heads"] == 4
    assert len(list(folder.glob("bpe*.tiktoken"))) == 1  # both parts read the same tokens
    assert len(records[criteria.BY_LOSS, 0]["pruned_at"]) == len(records[criteria.DRAWN, 0]["pruned_at"]) == 2
    before = (folder / store.RESULTS).read_bytes()
    plasticity.run_all(plan, folder, workers=1)
    assert (folder / store.RESULTS).read_bytes() == before  # nothing is done twice
    page = plasticity_page.write(folder, asdict(plan), tmp_path, logs=[folder], command="make it")
    assert page.index("all heads off, at once") < page.index("### Targets") < page.index("## Is it real?")
    assert (tmp_path / plasticity_page.PICTURE).stat().st_size > 10_000
    assert all(f"| {arm.name} |" in page for arm in SMALL[1:])
    assert "Deciding by the loss" in page
    assert "fine-tuning: Taylor, 75%" in page
    assert (tmp_path / "results" / plasticity_page.RESULTS).exists()


def test_all_arms_of_a_seed_see_the_same_batches(plan: Plan, tmp_path: Path):
    evidence = Evidence(plan, folder_of(plan, tmp_path))
    whole, resumed = Run(plan, evidence, 0), Run(plan, evidence, 0)
    whole.train(plan.training.steps)
    whole.save(tmp_path / "base.pt")
    resumed.load(tmp_path / "base.pt")
    for run in (whole, resumed):
        run.train(plan.finetuning)
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_learning_rate_is_constant_until_heads_go(plan: Plan, tmp_path: Path):
    run = Run(plan, Evidence(plan, folder_of(plan, tmp_path)), 0)
    factors = []
    for run.step in range(plan.training.steps + plan.finetuning + 1):
        factors.append(run.factor())
    assert factors[:7] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.05 + 0.95 / 2)
    assert factors[10] == pytest.approx(0.05)


def test_the_plan_names_its_steps():
    full = Plan("", "")
    assert full.rules.steps == full.training.steps + full.finetuning
    assert full.rising_steps[0] == 300
    assert full.rising_steps[-1] == 700  # the second half of the fine-tuning is to recover in
    assert full.criteria.training + full.criteria.cycles * (full.criteria.warmup + full.criteria.finetuning) == 500


def test_more_seeds_keep_what_was_measured(plan: Plan):
    assert plan.fingerprint == replace(plan, seeds=(0,)).fingerprint
    assert replace(plan, finetuning=5).fingerprint != plan.fingerprint


# What is removed


def run_of(plan: Plan, tmp_path: Path, steps: int = 2) -> tuple[Run, Evidence]:
    evidence = Evidence(plan, folder_of(plan, tmp_path))
    run = Run(plan, evidence, 0)
    run.train(steps)
    return run, evidence


def test_heads_that_are_missed_come_back(plan: Plan, tmp_path: Path):
    run, evidence = run_of(plan, tmp_path)
    prune(run, Arm(DEFAULT, 0.5, regrow=2), evidence, 0.5)
    heads = units_of(run.model, "heads")
    assert int(heads.mask.sum()) == int(heads.present.sum()) == 4
    run.train(1)
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


def test_without_any_head_the_model_still_learns(plan: Plan, tmp_path: Path):
    run, _ = run_of(plan, tmp_path)
    remove_all(run)
    assert int(units_of(run.model, "heads").mask.sum()) == 0
    run.train(1)
    assert torch.isfinite(torch.tensor(run.losses)).all()


def test_a_smaller_model_has_its_heads_spread_evenly(plan: Plan, tmp_path: Path):
    assert spread_evenly(10, (4, 8)).sum(1).tolist() == [3, 3, 2, 2]
    run, _ = run_of(plan, tmp_path, steps=0)
    remove_evenly(run, 0.5)
    assert units_of(run.model, "heads").present.sum(1).tolist() == [2, 2]
    run.train(1)


def test_a_rising_level_ends_at_the_arms():
    levels = [risen(0.5, i, 4) for i in range(1, 5)]
    assert levels == pytest.approx([0.5 * (1 - 0.75**3), 0.5 * (1 - 0.5**3), 0.5 * (1 - 0.25**3), 0.5])


# Teachers


@torch.no_grad()
def test_a_student_that_is_its_own_teacher_learns_half_of_the_cross_entropy(plan: Plan, tmp_path: Path):
    run = Run(plan, Evidence(plan, folder_of(plan, tmp_path)), 0)
    batch = next(run.batches)
    model = run.model.eval()
    loss = taught_by(model)(model(batch.input_ids), batch)
    nll = torch.nn.functional.cross_entropy(
        model(batch.input_ids).flatten(0, 1), batch.targets.flatten(), ignore_index=-100
    )
    assert float(loss) == pytest.approx(0.5 * float(nll), rel=1e-5)


# When to prune


def test_steps_are_spread_or_drawn_within_the_warmups():
    options = criteria.Options()
    assert criteria.steps_of(criteria.BY_LOSS, options, 0) is None
    assert criteria.steps_of(criteria.EVENLY, options, 0) == [167, 333]
    drawn = [criteria.steps_of(criteria.DRAWN, options, seed) for seed in range(50)]
    for steps in drawn:
        assert steps is not None
        first, second = steps
        assert 80 <= first <= 240
        assert 50 <= second - first <= 210
    assert len({tuple(steps or ()) for steps in drawn}) > 40


def test_a_rule_is_replayed_on_a_real_training():
    """A fall of 0.01 a step, then a plateau: the slope sees it there, and nothing is left to gain."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(600)
    losses = np.maximum(5 - 0.01 * np.arange(600), 2) + noise
    found = stabilization.replayed(losses.tolist(), stabilization.slope_rule())
    assert found.step is not None
    assert 300 < found.step < 380
    assert abs(found.gained) < 0.05
    assert found.whole == pytest.approx(2.9, abs=0.02)
    early = stabilization.replayed(losses.tolist(), lambda curves: np.arange(600)[None] >= 99)
    assert (early.step, early.gained) == (100, pytest.approx(2.105, abs=0.02))
    short = stabilization.replayed(losses[:50].tolist(), stabilization.slope_rule())
    assert (short.step, short.gained) == (None, 0.0)
    table = stabilization.trainings({"it": [losses.tolist(), losses[:50].tolist()]})
    assert "| it | 600 | slope, window 70, threshold 3 | 1 of 2 |" in table


# The controller


@pytest.mark.slow
def test_a_network_is_judged_on_heads_that_it_did_not_learn_from(plan: Plan, tmp_path: Path):
    run, evidence = run_of(plan, tmp_path)
    model = run.model.eval()
    heads, sample = units_of(model, "heads"), evidence.sample(model, 0)
    damage = torch.arange(8, dtype=torch.float64).view(2, 4)
    found = judges.compare(heads, sample, damage, splits=2)
    assert set(found) == {judges.NETWORK, judges.BLIND, judges.TAYLOR, judges.GRADIENT}
    assert all(len(values) == 2 and -1.001 <= min(values) <= 1.001 for values in found.values())
    taylor = STRATEGIES[DEFAULT].scores(heads, sample, keep=0)
    same = judges.compare(heads, sample, taylor, splits=1)
    assert same[judges.TAYLOR] == [pytest.approx(1.0)]


# The page


def records_of(folder: Path, *, seeds: int = 5) -> None:
    """All arms: Taylor is as good as unpruned, draws are worse, and a teacher takes away two thirds of the cost."""
    levels = {f"{level}": [102.0, 102.0] for level in plasticity.LEVELS}
    strategies = {
        name: {"scores": [], "seconds": 1.0, "spearman": 0.9, "levels": levels} for name in (DEFAULT, *RANDOM)
    }
    judged = {judges.NETWORK: [0.9], judges.BLIND: [0.5], judges.TAYLOR: [0.95], judges.GRADIENT: [0.6]}
    nats = dict.fromkeys((arm.name for arm in arms()), 99.0)
    nats |= {UNPRUNED: 90.0, OTHER_ORDER: 90.1, ALL_OFF: 100.0, "unpruned, taught": 90.0}
    nats |= {"unpruned, taught by the finished": 87.5}
    nats |= {"Taylor, 15%": 90.01, "Taylor, 30%": 90.05, "Taylor, 50%": 92.0, "Taylor, 75%": 93.0}
    nats |= {"Taylor, 75%, taught": 91.0, "Taylor, 75%, taught by the finished": 91.0}
    nats |= {criteria.WHOLE: 90.0, criteria.BY_LOSS: 91.0, criteria.EVENLY: 91.0, criteria.DRAWN: 91.0}
    sizes = {"parameters": 5, "parameters_whole": 10, "flops": 10, "flops_whole": 20, "training_seconds": 2.0}
    more = {"speedup": 1.6, "steps": 200, "pruned_at": [1, 2], "went_back": 0, "heads": 8}
    for seed in range(seeds):
        shift = 1 + seed / 1000
        scores = {"strategies": strategies, "whole": [100.0, 100.0], "off": [110.0, 110.0], "judges": judged}
        store.append(folder, {"arm": "scores", "seed": seed, "scale": [50.0, 50.0], **scores})
        for arm, value in nats.items():
            store.append(folder, {"arm": arm, "seed": seed, "test": [shift * value] * 2, **sizes, **more})


def rows_of(page: str) -> dict[str, str]:
    return {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}


def test_the_page_says_what_the_records_say(plan: Plan, tmp_path: Path):
    folder = folder_of(plan, tmp_path)
    records_of(folder)
    assert Results(folder).against("Taylor, 50%").mean == pytest.approx(100 * 2 / 90)
    (tmp_path / "plasticity.md").write_text("# Above\n\n## Limits\n\nsome\n\n## Is it real?\n\nold\n")
    page = plasticity_page.write(folder, asdict(plan), tmp_path, logs=[folder], command="make it")
    written = (tmp_path / "plasticity.md").read_text()
    assert "\nold\n" not in written
    assert written.index("# Above") < written.index("## Limits") < written.index("## What it gains")
    rows = rows_of(page)
    assert rows["all heads off, and fine-tuned as all others"].endswith("| 100 % |")
    assert rows["30% of the heads off by Taylor"].endswith("| 0.5 % |")
    assert rows["Taylor, 30%: not worse than unpruned by 0.25 %"].endswith("| met |")
    assert rows["Taylor, 50%: not worse than unpruned by 0.25 %"].endswith("| missed |")
    assert rows["Taylor below each random draw at 30%, clear of 0"].endswith("| met |")
    assert rows["Taylor, 75%: taught, half of what pruning cost or less"].endswith("| met |")
    assert rows["Taylor, 75%: taught by the finished, half of what pruning cost or less"].endswith("| **missed** |")
    assert "nothing is claimed for it" in page
    assert "Deciding by the loss does not pay: no gain was seen" in page
    assert "| 50.0% | 2.00 | 1.60 | 200 | 2 |" in rows["Taylor, 50%, 30% of neurons"]


def test_what_decides_by_the_loss_pays_when_both_others_are_worse(plan: Plan, tmp_path: Path):
    folder = folder_of(plan, tmp_path)
    records_of(folder)
    for seed in range(5):
        better = {"arm": criteria.BY_LOSS, "seed": seed, "test": [(1 + seed / 1000) * 90.5] * 2}
        store.append(folder, better)
    assert plasticity_page.deciding(Results(folder)).startswith("Deciding by the loss pays:")


def test_a_section_takes_the_place_of_the_one_before(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("# Page\n\n## One\n\nfirst\n\n## Two\n\nsecond\n")
    sections.put(path, "## One", "## One\n\nnew\n")
    sections.put(path, "## Between", "## Between\n\nit\n", before="## Two")
    sections.put(path, "## Last", "## Last\n\nend\n")
    sections.put(tmp_path / "new.md", "## First", "## First\n", before="## Two")
    assert (tmp_path / "new.md").read_text() == "## First\n"
    assert path.read_text() == "# Page\n\n## One\n\nnew\n\n## Between\n\nit\n\n## Two\n\nsecond\n\n## Last\n\nend\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_quick_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plasticity, "arms", lambda: SMALL[:1])
    first, heldout, _ = texts(tmp_path)
    words = ["--train", first, "--heldout", heldout, "--quick", "--workers", "1"]
    plasticity.main([*words, "--work", str(tmp_path / "work")])
    (folder,) = (tmp_path / "work").iterdir()
    assert json.loads((folder / "plan.json").read_text())["seeds"] == [0]
    assert (folder / "plasticity.md").is_file()
