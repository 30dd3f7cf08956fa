"""Is plasticity real? `python -m experiments.plasticity [--quick] [--train PATH --heldout PATH [--test PATH]]`

A small language model is trained from scratch; then heads are removed by each strategy, at several levels, and all arms
are trained for as many further steps, on the same batches in the same order, as the model of which nothing was removed.
A run that was interrupted goes on. Writes two sections of docs/plasticity.md, and docs/results/plasticity.jsonl (with
`--quick` into the folder of the results).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import criteria, judges, plans, plasticity_page, store
from experiments.arguments import ROOT, add_texts, called, command_of, take_texts
from experiments.plasticity_plan import (
    ALL_OFF,
    FINISHED,
    LEVELS,
    OTHER_ORDER,
    SMALLER,
    STRATEGIES,
    UNPRUNED,
    Arm,
    Plan,
    arms,
    name_of_model,
    quick,
)
from experiments.plasticity_runs import (
    Evidence,
    Loss,
    Run,
    chosen,
    plain,
    prune,
    remove_all,
    remove_evenly,
    set_rates,
    size_of,
    taught_by,
    train_with_rising_level,
)
from experiments.runs import frozen_copy
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.importance import measured
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.pruning import dead_after
from lightning_app.plasticity.scores import spearman
from lightning_app.training.allocator import tune_allocator

SCORES, BASE = "scores", "base"
LOSSES = "losses.jsonl"  # of all trainings, step by step
OF_OTHERS = ROOT / "runs" / "experiment_plasticity_smollm2"  # whose trainings the rules are asked about, too


@dataclass(frozen=True)
class Job:
    """One line of the results.

    Attributes:
        arm: of the main part.
        when: an arm of `criteria`.
    """

    plan: Plan
    folder: Path
    seed: int
    arm: Arm | None = None
    when: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.arm.name if self.arm else self.when or SCORES, self.seed

    def file(self, what: str) -> Path:
        return self.folder / f"{what}-{self.seed}.pt"


def _begin(job: Job) -> Evidence:
    torch.set_num_threads(1)
    tune_allocator()
    return Evidence(job.plan, job.folder)


def keep_losses(job: Job, name: str, kind: str, losses: Sequence[float]) -> None:
    """Of a training, for `stabilization.replayed`."""
    rounded = [round(loss, 4) for loss in losses]
    store.append(job.folder, {"name": name, "kind": kind, "seed": job.seed, "losses": rounded}, LOSSES)


# The model that all arms of a seed begin with


def train_base(job: Job) -> None:
    """With its state where a rising budget begins."""
    if job.file(BASE).exists():
        return
    run, begins = Run(job.plan, _begin(job), job.seed), job.plan.rises[0]
    run.train(begins)
    run.save(job.file("early"))
    run.train(job.plan.training.steps - begins)
    run.save(job.file(BASE))
    keep_losses(job, job.plan.model_name, "from scratch, constant rate", run.losses)
    print(f"seed {job.seed}: trained, {run.seconds:.0f} CPU s", flush=True)


def _loaded(job: Job, evidence: Evidence, what: str = BASE, **options: Any) -> Run:
    run = Run(job.plan, evidence, job.seed, **options)
    run.load(job.file(what))
    return run


# Before any fine-tuning


def score_all(job: Job) -> None:
    """Scores of all strategies, and what each level costs."""
    if job.key in done(job.folder):
        return
    evidence = _begin(job)
    model, text = _loaded(job, evidence).model.eval(), evidence.test()
    heads, sample = units_of(model, "heads"), evidence.sample(model, job.seed)
    record: dict[str, Any] = {
        "arm": SCORES,
        "seed": job.seed,
        "scale": text.scale.tolist(),
        "whole": text.nats(model).all.tolist(),
    }
    record["strategies"] = {name: _of_strategy(name, job, evidence, model) for name in STRATEGIES}
    heads.set_mask(torch.zeros(heads.shape, dtype=torch.bool))
    record["off"] = text.nats(model).all.tolist()
    heads.set_mask(torch.ones(heads.shape, dtype=torch.bool))
    oracle = torch.tensor(record["strategies"]["leave one out"]["scores"], dtype=torch.float64)
    for found in record["strategies"].values():
        found["spearman"] = spearman(torch.tensor(found["scores"], dtype=torch.float64), oracle)
    record["judges"] = judges.compare(heads, sample, oracle, splits=job.plan.splits)
    store.append(job.folder, record)
    print(f"scores, seed {job.seed}: done", flush=True)


def _of_strategy(name: str, job: Job, evidence: Evidence, model: Decoder) -> dict[str, Any]:
    """Its scores, CPU seconds of one measurement, and nats of the text at each level."""
    heads, sample, text = units_of(model, "heads"), evidence.sample(model, job.seed), evidence.test()
    total, watch, levels = math.prod(heads.shape), store.Stopwatch(), {}
    with watch:
        scores = measured(STRATEGIES[name], heads, sample, keep=0)
    for level in LEVELS:
        dead = chosen(scores, heads.mask, dead_after(level, total, 1, 1))
        heads.set_mask(~dead)
        levels[f"{level}"] = text.nats(model).all.tolist()
        heads.set_mask(torch.ones_like(dead))
    return {"scores": scores.tolist(), "seconds": watch.seconds, "levels": levels}


# Arms


def finetune(job: Job) -> None:
    """Prune, train on, and keep the numbers."""
    arm = job.arm
    if arm is None or job.key in done(job.folder):
        return
    evidence = _begin(job)
    run, by, facts = _prepared(job, arm, evidence)
    begun = run.seconds
    if arm.rising:
        train_with_rising_level(run, arm, evidence)
    else:
        run.train(job.plan.training.steps + run.finetuning - run.step, by=by)
    if arm == Arm(UNPRUNED):
        run.save(job.file("finished"))
    keep_losses(job, *_kind(job.plan, arm), run.losses)
    facts |= {"training_seconds": run.seconds - begun, "steps": len(run.losses)}
    nats = evidence.test().nats(run.model.eval()).all.tolist()
    store.append(job.folder, {"arm": arm.name, "seed": job.seed, "test": nats, **size_of(run.model, job.plan), **facts})
    print(f"{arm.name}, seed {job.seed}: {run.seconds - begun:.1f} CPU s", flush=True)


def _kind(plan: Plan, arm: Arm) -> tuple[str, str]:
    """Which model was trained, and how, for the rules of stability."""
    if arm.strategy == SMALLER:
        return f"{plan.model_name} with {1 - arm.level:.0%} of its heads", "from scratch, a cosine at the end"
    return plan.model_name, f"fine-tuning: {arm.name}"


def _prepared(job: Job, arm: Arm, evidence: Evidence) -> tuple[Run, Loss, dict[str, Any]]:
    """A run that is to be trained to its end, its loss, and what was measured."""
    if arm.strategy == SMALLER:
        run = Run(job.plan, evidence, job.seed)
        remove_evenly(run, arm.level)
        return run, plain, {}
    if arm.rising:
        return _loaded(job, evidence, "early"), plain, {}
    order = job.seed + 1000 if arm.strategy == OTHER_ORDER else None
    run = _loaded(job, evidence, order=order)
    whole = frozen_copy(run.model)
    if arm.strategy == ALL_OFF:
        remove_all(run)
    elif arm.strategy in STRATEGIES:
        prune(run, arm, evidence, arm.level, _known(job, arm))
    if arm.layer_factor != 1:
        set_rates(run, arm.layer_factor)
    if arm.longer:
        times = run.times_longer(whole)
        run.finetuning = round(times * job.plan.finetuning)
        return run, plain, {"times_longer": times}
    teacher = frozen_copy(_loaded(job, evidence, "finished").model) if arm.teacher == FINISHED else whole
    return run, taught_by(teacher) if arm.teacher else plain, {}


def _known(job: Job, arm: Arm) -> Tensor | None:
    """Scores that were measured already."""
    found = next((r for r in store.records(job.folder) if (r["arm"], r["seed"]) == (SCORES, job.seed)), None)
    return None if found is None else torch.tensor(found["strategies"][arm.strategy]["scores"], dtype=torch.float64)


# When to prune


def train_by_criteria(job: Job) -> None:
    if job.key in done(job.folder):
        return
    evidence, plan, watch = _begin(job), job.plan, store.Stopwatch()
    sizes = {"vocab_size": evidence.corpus.tokenizer.vocab_size, "block_size": plan.training.block_size}
    with watch:
        found = criteria.fit(job.when, plan.criteria, job.seed, job.folder, **sizes)
    keep_losses(job, name_of_model(plan.criteria.model), f"from scratch, a cosine: {job.when}", found.losses)
    facts = {"pruned_at": found.pruned_at, "went_back": found.went_back, "heads": found.heads}
    nats = evidence.test().nats(found.module).all.tolist()
    store.append(
        job.folder, {"arm": job.when, "seed": job.seed, "test": nats, **facts, "training_seconds": watch.seconds}
    )
    print(f"{job.when}, seed {job.seed}: {watch.seconds:.1f} CPU s", flush=True)


def done(folder: Path) -> set[tuple[str, int]]:
    return {(record["arm"], record["seed"]) for record in store.records(folder)}


def run_all(plan: Plan, folder: Path, *, workers: int) -> None:
    """What is not there yet; each stage needs those before it."""
    with store.counted(folder):
        evidence = Evidence(plan, folder)  # once, before all workers want it
        evidence.test()
        criteria.write_texts(folder, plan.train, plan.heldout, plan.test)
    evidence.keep_untrained()
    plain_jobs = [Job(plan, folder, seed) for seed in plan.seeds]
    first, *others = [[Job(plan, folder, seed, arm) for seed in plan.seeds] for arm in arms()]
    when = [Job(plan, folder, seed, when=arm) for arm in criteria.ARMS for seed in plan.seeds]
    for do, jobs in (
        (train_base, plain_jobs),
        (score_all, plain_jobs),
        (finetune, first),  # UNPRUNED, which teaches
        (finetune, [job for some in others for job in some]),
        (train_by_criteria, when),
    ):
        store.do_all(do, jobs, workers=workers, folder=folder)


def parsed(words: Sequence[str] | None) -> tuple[Plan, Path, argparse.Namespace]:
    """Plan, folder of the results, and options."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plasticity", description=__doc__)
    add_texts(parser)
    parser.add_argument("--quick", action="store_true", help="in small: one seed, a few steps")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_plasticity"), help="where results are kept")
    parser.add_argument("--out", default=None, help="folder of page and pictures; docs, or with --quick WORK")
    plans.add_allowance(parser)
    options = take_texts(parser.parse_args(words))
    plan = Plan(options.train, options.heldout, options.test)
    plan = quick(plan) if options.quick else plan
    return plan, Path(options.work) / plan.fingerprint, options


def main(words: Sequence[str] | None = None) -> None:
    plan, folder, options = parsed(words)
    plans.begin_as(options, folder, plan.rules)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    run_all(plan, folder, workers=options.workers)
    out = Path(options.out) if options.out else folder if options.quick else ROOT / "docs"
    logs = [folder, *OF_OTHERS.glob("*")]
    command = command_of("experiment-plasticity", options)
    print(plasticity_page.write(folder, asdict(plan), out, logs=logs, command=command))


if __name__ == "__main__":
    called(main)
