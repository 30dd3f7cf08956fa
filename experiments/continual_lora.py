"""What keeps a pretrained model from forgetting? `python -m experiments.continual_lora [--quick] ...`

SmolLM2 learns the second domain of experiments.continual by LoRA: plainly, with text of the first domain replayed, held
to what it said before on the new text (LwF), or on samples of its own. A run that was interrupted goes on. Writes its
part of docs/art.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import art_page, continual, continual_lora_page, entry, newer_states, plans, store
from experiments.arguments import called, command_of
from experiments.arms import ARMS, LWF, ON_TOP, PLAIN, SAMPLES, batches_of, new_module
from experiments.chosen import AT_RANDOM, sampled
from experiments.continual import ids_in, out_of, parsed, texts_of
from experiments.domains import Domains, prepare_domains
from experiments.levels import Trial, best, tried
from experiments.runs import Training, blocks, fast_precision
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.io import replacing
from lightning_app.memory.model import MemoryLM
from lightning_app.models.lora import LoRA
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.training.allocator import tune_allocator
from lightning_app.training.module import LanguageModule

FOLDER = "lora"
MODEL = "models/smollm2"
TRIED = (PLAIN, ON_TOP, LWF, SAMPLES[AT_RANDOM])
RULES = plans.read("art_lora")


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        texts: of experiments.continual.
        training: of an arm, but for the learning rate; a batch is one row.
        lr: of each arm's first trial.
        points: how often an arm is scored on its way, evenly spread.
        blocks: of each held-out text, evenly spread, that are scored; half as many are chosen on.
        samples: rows of the model's own.
        of_sample: tokens of each.
    """

    texts: tuple[str, str, str, str | None]
    model: str = MODEL
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    training: Training = Training(block_size=256, batch_size=1, group=1, steps=RULES.steps, warmup_steps=10)  # noqa: RUF009
    lr: float = 5e-4
    points: int = 4
    blocks: int = 32
    samples: int = 32
    of_sample: int = 256
    trials: int = RULES.trials

    @property
    def fingerprint(self) -> str:
        arms = {arm: vars(ARMS[arm]) for arm in TRIED}
        return plans.fingerprint(self, arms, newer_states.digest_of(self.model), texts=self.texts)


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    training = replace(plan.training, block_size=32, steps=2, warmup_steps=1)
    return replace(plan, seeds=plan.seeds[:1], training=training, points=1, blocks=4, samples=2, of_sample=16, trials=1)


@dataclass(frozen=True)
class Job:
    """All trials of an arm, or the one that was chosen."""

    plan: Plan
    folder: Path
    seed: int
    arm: str
    part: continual.Part


def begun(plan: Plan, folder: Path) -> Domains:
    torch.set_num_threads(1)
    tune_allocator()
    train, heldout, second, test = plan.texts
    return prepare_domains(train, heldout, second, test, tokenizer=load_tokenizer(plan.model), folder=folder)


def new_backbone(plan: Plan) -> PretrainedLM:
    return PretrainedLM(pretrained=plan.model, lora=LoRA(r=8, alpha=16.0))


def prepare(job: Job) -> None:
    """What the model gains from its context, and samples of its own: it is the same for all seeds."""
    path = job.folder / "kept.pt"
    if path.exists():
        return
    plan, domains = job.plan, begun(job.plan, job.folder)
    model, watch = new_backbone(plan).eval(), store.Stopwatch()
    with torch.no_grad(), fast_precision():
        some = list(blocks(domains.first.val, plan.training.block_size, at_most=plan.blocks // 2))
        entry.keep(job.folder, job.seed, entry.gain_on_the_same_tokens(MemoryLM(model, []), some))
        vocabulary = {"vocab_size": domains.tokenizer.vocab_size, "start": domains.tokenizer.eot}
        with watch:
            drawn = sampled(model, plan.samples, plan.of_sample, seed=job.seed, **vocabulary)
    with replacing(path) as file:
        torch.save({"samples": drawn, "seconds": watch.seconds}, file)


def run(job: Job, trial: Trial, *, scored: bool) -> store.Record:
    """One training."""
    plan, domains = job.plan, begun(job.plan, job.folder)
    kept: dict[str, Any] = torch.load(job.folder / "kept.pt", weights_only=True)
    options = replace(plan.training, lr=trial.lr)
    module = _module(job, trial, options, domains, kept["samples"])
    n, there = plan.blocks if scored else plan.blocks // 2, ids_in(domains.second.train, len(domains.token_bytes))
    texts = texts_of(domains, scored=scored, block_size=options.block_size, blocks=n, there=there, rows=1, fast=True)
    batches = batches_of(ARMS[job.arm], domains.first.train, domains.second.train, options, job.seed)
    followed = continual.follow(module, batches, options, texts, points=plan.points)
    setup = kept["seconds"] if job.arm == SAMPLES[AT_RANDOM] else 0.0
    return {"arm": job.arm, "seed": job.seed, **asdict(trial), **followed, "setup_seconds": setup}


def _module(job: Job, trial: Trial, options: Training, domains: Domains, samples: Tensor) -> LanguageModule:
    torch.manual_seed(job.seed)
    kept = {f"samples, {AT_RANDOM}": samples}
    backbone = new_backbone(job.plan)
    return new_module(ARMS[job.arm], trial.strength, backbone, kept, domains.first.train, options, job.seed)


def try_out(job: Job) -> None:
    """Trials of an arm, each where the ones before it have led."""
    start = Trial(job.plan.lr, ARMS[job.arm].strength)
    continual.walk(job, partial(run, job, scored=False), start=start, widen=False)


def learn_second(job: Job) -> None:
    """The trial of an arm that was chosen, on the texts to score."""
    records = store.records(job.folder)
    if not continual.is_scored(job, records):
        continual.keep(job, run(job, best(tried(job.arm, records)), scored=True) | {"trial": None})


def jobs(plan: Plan, folder: Path) -> list[tuple[Any, list[Job]]]:
    """What can be done at once, after what came before."""
    tuning = plan.seeds[0]
    return [
        (prepare, [Job(plan, folder, tuning, PLAIN, "first")]),
        (try_out, [Job(plan, folder, tuning, PLAIN, "trial")]),
        (try_out, [Job(plan, folder, tuning, arm, "trial") for arm in TRIED[1:]]),
        (learn_second, [Job(plan, folder, seed, arm, "steps") for arm in TRIED for seed in plan.seeds]),
    ]


def write_plan(plan: Plan, folder: Path) -> None:
    """For the page."""
    (folder / continual_lora_page.PLAN).write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")


def main(words: list[str] | None = None) -> None:
    of_small, folder, options = parsed(words, prog="python -m experiments.continual_lora", about=__doc__)
    plan = Plan((of_small.train, of_small.heldout, of_small.second, of_small.test))
    plan = quick(plan) if options.quick else plan
    mine = folder / FOLDER / plan.fingerprint
    plans.begin_as(options, mine, plan.rules)
    write_plan(plan, mine)
    (do, some), *others = jobs(plan, mine)
    store.do_all(do, some, workers=options.workers, folder=mine)
    for do, some in others if entry.proceed(mine, plan.rules, quick=options.quick) else []:
        store.do_all(do, some, workers=options.workers, folder=mine)
    out, command = out_of(options, folder), command_of("experiment-art", options)
    print(art_page.write(folder, asdict(of_small), out, command=command))
    plans.publish(mine, plan.rules, out / "results" / "art_lora.jsonl")


if __name__ == "__main__":
    called(main)
