"""A plan is older than its results or the page says otherwise, and CPU seconds of all runs count."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments import arms, continual_lora, criteria, memory, plans, plasticity, store
from experiments.arguments import called
from experiments.plans import RUNS, Rules, begin, last_change, publish, read, told
from lightning_app.errors import InputError

PLAN = """
question: Is it so?
primary: bits per byte
arms: [one, two]
seeds: [0, 1]
least_gain: 0.1
steps: 100
validations: 5
patience: 2
cpu_hours: 2
margins: {two: 0.5}
"""


def git(folder: Path, *words: str) -> None:
    as_someone = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *as_someone, *words], cwd=folder, check=True)


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rules:
    """A plan in a repository of its own, committed."""
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "mine.yaml").write_text(PLAN)
    monkeypatch.setattr(plans, "PLANS", folder)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "plan")
    return read("mine")


def start(folder: Path, rules: Rules, *, quick: bool = False, allow_uncommitted: bool = False) -> None:
    begin(folder, rules, quick=quick, allow_uncommitted=allow_uncommitted)


def test_results_of_a_committed_plan_are_said_to_be_of_it(rules: Rules, tmp_path: Path):
    start(tmp_path / "work", rules)
    page = told(tmp_path / "work", rules, ["one", "two"])
    assert f"at commit `{last_change(rules.path).commit}`. It was committed before the first run (20" in page
    assert "and all results are of it." in page
    assert "**" not in page
    assert "| a training ends | when 2 of its 5 validations in a row are no better, or after all steps |" in page
    assert "| not worse | two: up to 0.5 % more |" in page


@pytest.mark.parametrize("how", ["changed", "not added"])
def test_a_plan_that_is_not_committed_does_not_start(rules: Rules, tmp_path: Path, how: str):
    if how == "changed":
        rules.path.write_text(PLAN.replace("0.5", "5"))
    else:
        rules.path.rename(rules.path.with_name("other.yaml"))
        rules = replace(rules, name="other")
    folder = tmp_path / "work"
    with pytest.raises(InputError, match=r"plans/\w+.yaml is not committed as it is: .* --allow-uncommitted"):
        start(folder, rules)
    assert not folder.exists()
    start(folder, rules, allow_uncommitted=True)
    assert "in small" not in told(folder, rules, [])
    start(folder, rules, quick=True)
    assert "**This was a run in small" in told(folder, rules, [])
    assert "**It was not committed when the results were made.**" in told(folder, rules, ["one", "two"])


def test_results_of_another_commit_of_the_plan_are_named(rules: Rules, tmp_path: Path):
    folder, before = tmp_path / "work", last_change(rules.path).commit
    start(folder, rules)
    rules.path.write_text(PLAN + "# why\n")
    git(rules.path.parent, "commit", "-q", "-a", "-m", "why")
    start(folder, rules)
    assert f"**Some results are of other commits of it: {before}.**" in told(folder, rules, ["one", "two"])


def test_arms_that_differ_from_the_plan_are_named(rules: Rules, tmp_path: Path):
    start(tmp_path, rules)
    page = told(tmp_path, rules, ["one", "three"])
    assert "**Planned and not run: two.**" in page
    assert "**Run and not planned: three.**" in page


def test_cpu_seconds_of_all_runs_count_and_of_jobs_that_fail(rules: Rules, tmp_path: Path):
    store.append(tmp_path, {"cpu_seconds": 1800}, store.SECONDS)
    with pytest.raises(ZeroDivisionError), store.counted(tmp_path):
        _ = 1 / len([x for x in range(10_000_000) if x < 0])
    assert 0.5 < store.cpu_hours(tmp_path) < 0.51
    assert store.records(tmp_path, store.SECONDS)[1]["cpu_seconds"] > store.SHORT
    assert "| CPU hours | 0.50 of 2, over all runs |" in told(tmp_path, rules, [])


def test_the_page_says_which_seeds_differ_from_the_plan(rules: Rules, tmp_path: Path):
    assert "Seeds" not in told(tmp_path, rules, [])
    store.append(tmp_path, {"arm": "one", "seed": rules.seeds[0]})
    store.append(tmp_path, {"arm": "one", "seed": 7})
    page = told(tmp_path, rules, [])
    assert "**Seeds planned and not run: 1.**" in page
    assert "**Seeds run and not planned: 7.**" in page


def burn(_: int) -> None:
    sum(range(10_000_000))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_those_of_workers_count(workers: int, tmp_path: Path):
    store.do_all(burn, [0, 1], workers=workers, folder=tmp_path)
    assert len(store.records(tmp_path, store.SECONDS)) == 2


def test_a_plan_is_part_of_the_fingerprint_and_its_seeds_are_not(rules: Rules, tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("a b c")
    plan = memory.Plan(str(text), str(text), rules=rules)
    assert replace(plan, rules=replace(rules, seeds=(7,)), seeds=(7,)).fingerprint == plan.fingerprint
    assert replace(plan, rules=replace(rules, margins={"two": 1.0})).fingerprint != plan.fingerprint


def test_a_mistake_is_one_line():
    def main() -> None:
        raise InputError("give both")

    with pytest.raises(SystemExit, match=r"^error: give both$"):
        called(main)


@pytest.mark.parametrize("name", ["memory", "art", "art_lora", "plasticity", "newer", "pairs"])
def test_plans_are_read_and_kept_as_json(name: str):
    rules = read(name)
    assert Rules(**json.loads(json.dumps(asdict(rules)))).margins == rules.margins
    assert len(rules.arms) == len(set(rules.arms)) > 2
    assert len(rules.seeds) >= (5 if name in ("memory", "art", "plasticity") else 1)


def test_arms_of_the_plans_are_those_that_run():
    assert read("art").arms == tuple(arms.ARMS)
    assert read("art_lora").arms == continual_lora.TRIED
    assert list(read("plasticity").arms) == [*(arm.name for arm in plasticity.arms()), *criteria.ARMS]
    jobs = [job for stage in memory.jobs(memory.Plan("a", "b", seeds=(0,)), Path()) for job in stage]
    ran = {arm for job in jobs for arm in job.arms if not arm.startswith("knn of ")}
    assert ran == set(read("memory").arms)


def test_the_runs_are_kept_beside_the_results(rules: Rules, tmp_path: Path):
    start(tmp_path, rules)
    start(tmp_path, rules)
    assert [run["committed"] for run in store.records(tmp_path, RUNS)] == [True, True]
    assert store.records(tmp_path) == []


def test_published_results_are_gone_on_from(rules: Rules, tmp_path: Path):
    first, other, third = (tmp_path / name / "abc" for name in ("first", "other", "third"))
    start(first, rules)
    for record in ({"arm": "one", "seed": 0, "test_bpb": 1.5}, {"arm": "two", "seed": 0, "nats": [1.25, 2.0]}):
        store.append(first, record)
    store.append(first, {"seed": 0, "nats": 0.2}, store.GAINS)
    store.append(first, {"cpu_seconds": 360.0}, store.SECONDS)
    publish(first, rules, tmp_path / "results.jsonl")

    plans.begin(other, rules, quick=True, allow_uncommitted=False, published=tmp_path / "results.jsonl")
    assert store.records(other) == store.records(first)
    assert store.records(other, store.GAINS) == [{"seed": 0, "nats": 0.2}]
    assert store.cpu_hours(other) == pytest.approx(0.1)
    assert [run["quick"] for run in store.records(other, RUNS)] == [False, True]

    third.mkdir(parents=True)
    store.append(third, {"arm": "own", "seed": 0})
    plans.begin(third, rules, quick=True, allow_uncommitted=False, published=tmp_path / "results.jsonl")
    assert store.records(third) == [{"arm": "own", "seed": 0}]


def test_results_of_another_plan_are_refused(rules: Rules, tmp_path: Path):
    start(tmp_path / "abc", rules)
    publish(tmp_path / "abc", rules, tmp_path / "results.jsonl")
    for path in (tmp_path / "results.jsonl", tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="has no results of this plan and these texts"):
            plans.begin(tmp_path / "def", rules, quick=True, allow_uncommitted=False, published=path)
