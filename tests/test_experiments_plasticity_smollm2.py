"""The part on a pretrained model runs in small on a tiny one, goes on where it was interrupted, and has its section."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import plans, plasticity_smollm2, plasticity_smollm2_page, store
from experiments.plasticity_smollm2 import (
    TIMES,
    Arm,
    Cut,
    Job,
    Plan,
    Subject,
    amounts_of,
    jobs_of,
    quick,
    trained_arms,
    untrained_arms,
)
from experiments.plasticity_smollm2_page import Results
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import units_of
from tests import families
from tests.test_experiments_art import texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(families.save("LLaMA", tmp_path_factory.mktemp("smollm2") / "model"))


@pytest.fixture
def plan(model: str, tmp_path: Path) -> Plan:
    training = replace(Plan.training, block_size=16, steps=2, warmup_steps=1)
    sizes = {"block": 32, "tokens": 64, "amounts": (32, 96), "scored": 320, "rounds": 1, "training": training}
    cuts = (Cut(groups=0.5), Cut(neurons=0.5))
    sizes |= {"cuts": cuts, "timed": cuts, "recovered": (Cut(0.5, 0.5),)}
    return replace(quick(Plan(model, *texts(tmp_path)[:2])), seeds=(0, 1), **sizes)


def test_the_plan_names_all_arms():
    plan = Plan("", "", "")
    arms = [*untrained_arms(plan), *amounts_of(plan), *trained_arms(plan)]
    assert [arm.name for arm in arms] == list(plans.read("plasticity_smollm2").arms)
    assert set(plan.rules.margins) == {plasticity_smollm2_page.TARGET}
    assert plan.training.steps == plan.rules.steps == 100
    assert plan.blocks * plan.block <= 20000


def test_an_arm_cuts_what_its_name_says(plan: Plan, tmp_path: Path):
    subject = Subject(Job(plan, tmp_path, 0, None))
    model = subject.whole(freeze=True).eval()
    arm = Arm(Cut(groups=0.5, neurons=0.5), "Taylor")
    dead = subject.dead(model, arm)
    assert {kind: int(rows.sum()) for kind, rows in dead.items()} == {"heads": 2, "neurons": 64}
    assert set((~dead["neurons"]).sum(1).tolist()) <= {32, 64}  # multiples of 32
    assert (~dead["heads"]).any(1).all()
    other = subject.dead(model, replace(arm, strategy="random 1"))
    again = subject.dead(model, replace(arm, strategy="random 1"))
    assert all(torch.equal(other[kind], again[kind]) for kind in other)


def test_more_text_has_the_windows_of_less(plan: Plan, tmp_path: Path):
    subject = Subject(Job(plan, tmp_path, 0, None))
    model = subject.whole(freeze=True).eval()
    few, many = (subject.sample(model, tokens).batches for tokens in (32, 96))
    assert (len(few), len(many)) == (1, 3)
    assert torch.equal(few[0].input_ids, many[0].input_ids)
    gradients = subject.gradients(units_of(model, "heads"), 32)
    assert len(gradients) == 3  # kept once, for all amounts
    scores = [subject.scores(model, "heads", Arm(Cut(0.5), "Taylor", tokens=tokens)) for tokens in (32, 96)]
    assert not torch.equal(*scores)


def test_masked_and_cut_models_compute_the_same(plan: Plan, tmp_path: Path):
    subject = Subject(Job(plan, tmp_path, 0, None))
    ids = torch.arange(8)[None]
    masked, cut = (subject.whole(freeze=True).eval() for _ in range(2))
    for kind, dead in subject.dead(masked, Arm(Cut(0.5, 0.5), "magnitude")).items():
        units_of(masked, kind).set_mask(~dead)
        units_of(cut, kind).remove(dead, keep=False)
    assert isinstance(cut, PretrainedLM)
    with torch.no_grad():
        assert torch.allclose(masked(ids), cut(ids), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_jobs_run_in_small_go_on_and_become_a_section(plan: Plan, tmp_path: Path):
    folder = tmp_path / "results"
    folder.mkdir()
    jobs = jobs_of(plan, folder)
    store.do_all(plasticity_smollm2.run_job, jobs, workers=1, folder=folder)
    records = {(r["arm"], r["seed"]): r for r in store.records(folder)}
    assert set(records) == {job.key for job in jobs}
    cut, whole = records["50% of both, Taylor and gradient", 0], records["unpruned", 0]
    assert (whole["heads"], cut["heads"], whole["neurons"], cut["neurons"]) == (4, 2, 128, 64)
    assert cut["parameters"] < whole["parameters"]
    assert cut["test"] != records["50% of both, Taylor and gradient, taught", 0]["test"]
    assert records[TIMES, 0]["levels"]["50% of groups"]["ceiling"] > 1
    kinds = [line["kind"] for line in store.records(folder, plasticity_smollm2.LOSSES)]
    assert kinds.count("fine-tuning with LoRA") == 2
    before = (folder / store.RESULTS).read_bytes()
    store.do_all(plasticity_smollm2.run_job, jobs, workers=1, folder=folder)
    assert (folder / store.RESULTS).read_bytes() == before
    plan_as_kept = plasticity_smollm2.asdict(plan)
    page = plasticity_smollm2_page.write(folder, plan_as_kept, tmp_path, command="make it")
    assert all(f"| {arm.name} |" in page for arm in trained_arms(plan))
    assert "| 50% of groups, Taylor from 32 tokens |" in page
    assert (tmp_path / "results" / plasticity_smollm2_page.RESULTS).exists()


# The page


def records_of(folder: Path, *, ours: float, times: dict[str, dict[str, float]]) -> None:
    sizes = {"heads": 9, "neurons": 9, "parameters": 9, "training_seconds": 9.0, "scale": [50.0, 50.0]}
    nats = {"unpruned, untrained": 120.0, "unpruned": 100.0, "10% of groups, Taylor": ours}
    nats |= {"10% of groups, Taylor, taught": ours - 1, "10% of groups, Taylor from 1000 tokens, untrained": 126.0}
    for seed in range(3):
        for arm, value in nats.items():
            if seed == 0 or arm != "unpruned, untrained":
                store.append(folder, {"arm": arm, "seed": seed, "test": [value, value], **sizes})
    store.append(folder, {"arm": TIMES, "seed": 0, "levels": times})


@pytest.mark.parametrize(
    ("ours", "within_two", "within_one"),
    [(100.5, "met", "met"), (101.5, "met", "**missed**"), (103.0, "**missed**", "**missed**")],
)
def test_targets_are_told_by_the_records(ours: float, within_two: str, within_one: str, plan: Plan, tmp_path: Path):
    times = {"10% of both": {"speedup": 1.07, "ceiling": 1.08}, "30% of both": {"speedup": 1.1, "ceiling": 1.3}}
    records_of(tmp_path, ours=ours, times=times)
    assert Results(tmp_path).of_each_seed("10% of groups, Taylor from 1000 tokens, untrained") == pytest.approx([5] * 3)
    page = plasticity_smollm2_page._targets(Results(tmp_path), plan.rules.margins)
    rows = [line for line in page.splitlines() if line.startswith(("| 1", "| 3"))]
    assert [row.rsplit(" | ", 1)[1].removesuffix(" |") for row in rows] == [within_two, within_one, "met", "**missed**"]


def test_without_the_model_it_says_how_to_get_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    plasticity_smollm2.main(["--model", str(tmp_path / "none"), "--work", str(tmp_path)])
    assert "make smollm2" in capsys.readouterr().out
