"""Does ART keep what was learned? `python -m experiments.continual [--quick] [--train PATH --heldout PATH] ...`

A small language model learns one domain and then another. Arms differ in what they add to plain fine-tuning on the
second. Each has as many trials, of which one is chosen on held-out text; three seeds of that are scored on the test
texts, at several points of the way. A run that was interrupted goes on. Writes its part of docs/art.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import art_page, entry, plans, store, untrained
from experiments.arguments import ROOT, add_texts, called, command_of, take_texts
from experiments.arms import (
    ARMS,
    FROZEN,
    PLAIN,
    REPLAY,
    REPLAYED,
    fisher_information,
    learn_categories,
    new_module,
    settings,
    trials,
)
from experiments.domains import Domains, prepare_domains
from experiments.levels import best_trial
from experiments.runs import MODEL, Training, blocks, fast_precision, new_optimizer, training_batches
from experiments.statistics import by_document
from experiments.store import Stopwatch
from lightning_app.art.rules import pool
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.io import replacing
from lightning_app.memory.model import MemoryLM
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.training.allocator import tune_allocator
from lightning_app.training.compositions import CausalLM
from lightning_app.training.module import LanguageModule
from lightning_app.training.schedulers import WarmupCosine

FISHER_SEQUENCES = 200
RULES = plans.read("art")


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        train, heldout: the first domain's texts, to learn and to choose on.
        second: the second domain's text; of its last fifth one half is to choose on and one to score.
        test: the first domain's text to score; None: the second half of `heldout`.
        before: how the first domain is learned.
        steps, warmup_steps: of the second.
        points: how often an arm is scored on its way, evenly spread.
        blocks: of each held-out text, evenly spread, that are scored.
        probes: texts of the first domain whose states are followed.
    """

    train: str
    heldout: str
    second: str
    test: str | None = None
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    vocab_size: int = 1024
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    before: Training = Training(group=1)  # noqa: RUF009  (frozen)
    steps: int = RULES.steps
    warmup_steps: int = 50
    points: int = 5
    blocks: int = 96
    probes: int = 200

    @property
    def fingerprint(self) -> str:
        """Of the plan, the arms' settings and the texts."""
        return plans.fingerprint(self, settings(), texts=(self.train, self.heldout, self.second, self.test))

    @property
    def decoder(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "block_size": self.before.block_size, **self.model}


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    before = replace(plan.before, steps=60, warmup_steps=10)
    model = MODEL | {"embedding_dim": 64, "heads": 2}
    return replace(
        plan, seeds=plan.seeds[:1], model=model, before=before, steps=24, warmup_steps=5, points=3, blocks=24, probes=30
    )


@dataclass(frozen=True)
class Job:
    """One training. `trial` counts those of the arm; None: it is scored on the test texts with the one chosen."""

    plan: Plan
    folder: Path
    seed: int
    arm: str
    trial: int | None

    @property
    def key(self) -> tuple[str, int, int | None]:
        return self.arm, self.seed, self.trial


# Scores


class Texts:
    """Blocks of a held-out text, evenly spread, in batches of 16."""

    def __init__(self, tokens: TokenArray, token_bytes: Tensor, plan: Plan):
        windows = TokenWindows(tokens, plan.before.block_size)
        chosen = np.unique(np.linspace(0, len(windows) - 1, min(plan.blocks, len(windows))).astype(int)).tolist()
        self.batches = [windows.__getitems__(chosen[i : i + 16]) for i in range(0, len(chosen), 16)]
        columns = (torch.cat([self._scored(b, vars(b)[x]) for b in self.batches]) for x in _COLUMNS)
        targets, self.documents, positions = columns
        more = tokens.other_bytes(tokens.offsets[self.documents.numpy()] + positions.numpy() + 1)  # of lost text
        n_bytes = by_document(token_bytes[targets].double().numpy() + more, self.documents.numpy())
        self.scale = math.log(2) * n_bytes  # nats of each document that make one bit per byte

    @staticmethod
    def _scored(batch: Batch, values: Tensor) -> Tensor:
        return values[batch.targets != IGNORE]

    @torch.no_grad()
    def nats(self, module: LanguageModule) -> list[float]:
        """Sums over each document."""
        module.eval()
        nats = [self._scored(b, token_nll(module(b.input_ids), b.targets)) for b in self.batches]
        return by_document(torch.cat(nats).double().numpy(), self.documents.numpy()).tolist()

    def bits_per_byte(self, nats: list[float]) -> float:
        return float(np.sum(nats) / self.scale.sum())


_COLUMNS = ("targets", "document_ids", "positions")


@torch.no_grad()
def probe_states(module: LanguageModule, batches: list[Batch]) -> Tensor:
    """(N, D) mean last states of some texts."""
    module.eval()
    pooled = [pool(module.backbone.states(b.input_ids).last, b.attention_mask, "mean")[0] for b in batches]
    return torch.cat(pooled)


def drift(before: Tensor, after: Tensor) -> float:
    """Mean 1 - cosine of states, less the mean of those before: without it all cosines are high."""
    mean = before.mean(0)
    return float(1 - torch.cosine_similarity(before - mean, after - mean, dim=-1).mean())


# Training


def batches_of(arm: str, domains: Domains, plan: Plan, seed: int) -> Iterator[Batch]:
    """Of the second domain; with replay some rows are of the first one."""
    second = training_batches(domains.second.train, plan.before, seed)
    if arm != REPLAY:
        yield from second
    first = training_batches(domains.first.train, plan.before, seed + 1000)
    generator = np.random.default_rng((seed, 2))
    for batch in second:
        old = torch.from_numpy(generator.random(plan.before.batch_size) < REPLAYED)
        rows = next(first) if old.any() else batch
        pairs = zip(vars(batch).items(), vars(rows).values(), strict=True)
        yield Batch(**{name: torch.where(old[:, None], theirs, own) for (name, own), theirs in pairs})


def fit(module: LanguageModule, batches: Iterator[Batch], options: Training, watch: Stopwatch) -> Iterator[int]:
    """Train in `fast_precision`; yields the number of steps done, before the first and after each."""
    optimizer = new_optimizer(module, options)
    schedule = WarmupCosine(optimizer, warmup_steps=options.warmup_steps, total_steps=options.steps, min_ratio=0.1)
    yield 0
    for step in range(1, options.steps + 1):
        with watch:
            _step(module, next(batches), optimizer, options.clip)
            schedule.step()
        yield step


def _step(module: LanguageModule, batch: Batch, optimizer: torch.optim.Optimizer, clip: float) -> None:
    module.train()
    with fast_precision():
        outputs = module.outputs(batch)
        loss = torch.stack([weight * term for weight, term in module.loss_terms(outputs).values()]).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        module.learn([outputs.detached()] if module.learns else [])


def learn_first(job: Job) -> None:
    """The model that all arms of a seed start from, with its Fisher information."""
    path = state_of(job)
    if path.exists():
        return
    plan, domains = job.plan, _begin(job)
    torch.manual_seed(job.seed)
    module = CausalLM(Decoder(**plan.decoder))
    for _ in fit(module, training_batches(domains.first.train, plan.before, job.seed), plan.before, Stopwatch()):
        pass
    some_blocks = list(blocks(domains.first.val, plan.before.block_size, at_most=plan.before.validation_blocks))
    entry.keep(job.folder, job.seed, entry.gain_on_the_same_tokens(MemoryLM(module.backbone, []), some_blocks))
    windows = TokenWindows(domains.first.train, plan.before.block_size)
    some = np.random.default_rng(job.seed).permutation(len(windows))[:FISHER_SEQUENCES].tolist()
    fisher = fisher_information(module.backbone, [windows.__getitems__(some)], seed=job.seed)
    with replacing(path) as file:
        torch.save({"state": module.backbone.state_dict(), "fisher": fisher}, file)


def state_of(job: Job) -> Path:
    return job.folder / f"first-{job.seed}.pt"


def _begin(job: Job) -> Domains:
    torch.set_num_threads(1)
    tune_allocator()
    return domains_of(job.plan, job.folder)


def domains_of(plan: Plan, folder: Path) -> Domains:
    return prepare_domains(plan.train, plan.heldout, plan.second, plan.test, vocab_size=plan.vocab_size, folder=folder)


def keep_untrained(plan: Plan, folder: Path) -> None:
    """What needs no training knows both domains, and forgets neither."""
    domains = domains_of(plan, folder)
    both, parts = (domains.first.train, domains.second.train), {"first": domains.first, "second": domains.second}
    texts = {f"{name} domain": untrained.Text(both, part.val, part.test) for name, part in parts.items()}
    untrained.keep(folder, texts, domains.tokenizer)


def learn_second(job: Job) -> None:
    """Train an arm on the second domain, score it on its way, and keep the numbers."""
    if job.key in done(job.folder):
        return
    plan, domains = job.plan, _begin(job)
    chosen = job.trial if job.trial is not None else best_trial(job.arm, store.records(job.folder))
    trial = trials(job.arm)[chosen]
    saved = torch.load(state_of(job), weights_only=True)
    torch.manual_seed(job.seed)
    module = new_module(job.arm, trial.strength, plan.decoder, saved["state"], saved["fisher"])
    start, watch = time.process_time(), Stopwatch()
    with watch:
        learn_categories(module, domains.first.train, plan.before.block_size, seed=job.seed)
    texts = [
        Texts(domain.val if job.trial is not None else domain.test, domains.token_bytes, plan)
        for domain in (domains.first, domains.second)
    ]
    probes = TokenWindows(domains.first.val, plan.before.block_size)
    some = [probes.__getitems__(list(range(min(plan.probes, len(probes)))))]
    before = probe_states(module, some)
    options = replace(plan.before, steps=plan.steps, warmup_steps=plan.warmup_steps, lr=trial.lr)
    kept = texts[0].nats(module)  # with a new head the old one stays, and the backbone too
    points = [
        [kept if job.arm == FROZEN else texts[0].nats(module), texts[1].nats(module)]
        for step in fit(module, batches_of(job.arm, domains, plan, job.seed), options, watch)
        if step % max(1, plan.steps // plan.points) == 0
    ]
    record = {
        "arm": job.arm,
        "seed": job.seed,
        "trial": job.trial,
        "chosen": chosen,
        **asdict(trial),
        "first": [texts[0].bits_per_byte(nats) for nats, _ in points],
        "second": [texts[1].bits_per_byte(nats) for _, nats in points],
        "drift": drift(before, probe_states(module, some)),
        "train_seconds": watch.seconds,
        "seconds": time.process_time() - start,
        **module.learned,
    }
    if job.trial is None:
        record |= {"nats": [nats for nats, _ in points], "scale": texts[0].scale.tolist()}
    store.append(job.folder, record)
    print(f"{job.arm}, seed {job.seed}, {trial}: {record['first'][-1]:.3f}, {record['second'][-1]:.3f}", flush=True)


def done(folder: Path) -> set[tuple[str, int, int | None]]:
    return {(record["arm"], record["seed"], record["trial"]) for record in store.records(folder)}


def jobs(plan: Plan, folder: Path) -> list[tuple[Any, list[Job]]]:
    """What can be done at once, after what came before."""
    tuning = plan.seeds[0]
    return [
        (learn_first, [Job(plan, folder, seed, PLAIN, None) for seed in plan.seeds]),
        (learn_second, [Job(plan, folder, tuning, arm, i) for arm in ARMS for i in range(len(trials(arm)))]),
        (learn_second, [Job(plan, folder, seed, arm, None) for arm in ARMS for seed in plan.seeds]),
    ]


def parsed(words: list[str] | None, *, prog: str, about: str | None) -> tuple[Plan, Path, argparse.Namespace]:
    """Plan, folder of the results, and options: those of both parts of the experiment."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    add_texts(parser, second="text or folder that is learned then")
    parser.add_argument("--quick", action="store_true", help="in small: one seed, a few steps")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_art"), help="where results are kept")
    parser.add_argument("--out", default=None, help="folder of page and pictures; docs, or with --quick WORK")
    plans.add_allowance(parser)
    options = take_texts(parser.parse_args(words))
    plan = Plan(options.train, options.heldout, options.second, options.test)
    plan = quick(plan) if options.quick else plan
    folder = Path(options.work) / plan.fingerprint
    plans.begin(folder, plan.rules, quick=options.quick, allow_uncommitted=options.allow_uncommitted)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    with store.counted(folder):
        domains_of(plan, folder)  # once, before all workers want it
    return plan, folder, options


def out_of(options: argparse.Namespace, folder: Path) -> Path:
    """Where the page is."""
    return Path(options.out) if options.out else folder if options.quick else ROOT / "docs"


def main(words: list[str] | None = None) -> None:
    plan, folder, options = parsed(words, prog="python -m experiments.continual", about=__doc__)
    keep_untrained(plan, folder)
    (do, some), *others = jobs(plan, folder)
    store.do_all(do, some, workers=options.workers, folder=folder)
    for do, some in others if entry.proceed(folder, plan.rules, quick=options.quick) else []:
        store.do_all(do, some, workers=options.workers, folder=folder)
    print(art_page.write(folder, asdict(plan), out_of(options, folder), command=command_of("experiment-art", options)))


if __name__ == "__main__":
    called(main)
