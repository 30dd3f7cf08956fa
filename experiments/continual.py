"""Does ART keep what was learned? `python -m experiments.continual [--quick] [--train PATH --heldout PATH] ...`

A small language model learns one domain and then another. Arms differ in what they add to plain fine-tuning on the
second. Each has as many trials, of which one is chosen on held-out text; all seeds of that are scored on the test
texts, at several points of the way, once with equal steps and once with equal CPU seconds. A run that was interrupted
goes on. Writes its part of docs/art.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from experiments import art_page, chosen, entry, plans, store, untrained
from experiments.arguments import ROOT, add_texts, called, command_of, take_texts
from experiments.arms import ARMS, PLAIN, batches_of, holds, new_module, settings, setup_seconds
from experiments.domains import Domains, prepare_domains
from experiments.keeping import Settled, fisher_information
from experiments.levels import SETTINGS, Trial, best, first_trial, next_trial, of_trial, tried
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

RULES = plans.read("art")
Part = Literal["first", "trial", "steps", "seconds"]


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
        sizes: of what is kept of the first domain.
        trials: of each arm; EWC may have more (`widen`).
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
    sizes: chosen.Sizes = chosen.Sizes()  # noqa: RUF009
    trials: int = RULES.trials
    widen: bool = True

    @property
    def fingerprint(self) -> str:
        """Of the plan, the arms' settings and the texts."""
        return plans.fingerprint(self, settings(), SETTINGS, texts=(self.train, self.heldout, self.second, self.test))

    @property
    def decoder(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "block_size": self.before.block_size, **self.model}

    def training(self, steps: int, lr: float) -> Training:
        """Of the second domain; fewer steps have a shorter warm-up."""
        return replace(self.before, steps=steps, warmup_steps=self.warmup_steps * steps // self.steps, lr=lr)


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    return replace(
        plan,
        seeds=plan.seeds[:1],
        model=MODEL | {"embedding_dim": 64, "heads": 2},
        before=replace(plan.before, steps=60, warmup_steps=10),
        steps=16,
        warmup_steps=5,
        points=2,
        blocks=16,
        probes=30,
        sizes=chosen.Sizes(shown=100, tokens=500, prototypes=64, samples=16, fisher=20),
        trials=1,
        widen=False,
    )


@dataclass(frozen=True)
class Job:
    """What a worker is given.

    Attributes:
        part: the model of the first domain; all trials of an arm; the one that was chosen, with as many steps as all
            have, or with as many CPU seconds as plain fine-tuning has.
    """

    plan: Plan
    folder: Path
    seed: int
    arm: str
    part: Part


# Scores


@dataclass(frozen=True)
class Nats:
    """Sums over documents (D,): of all tokens, and of those that the second domain's training text does not have."""

    all: np.ndarray
    absent: np.ndarray


class Texts:
    """Blocks of a held-out text, evenly spread.

    Args:
        token_bytes: (V,) that the ids say.
        block_size: T.
        blocks: so many at most.
        there: (V,) bool, ids that occur in the second domain's training text; None: all.
        rows: blocks that are read at once.
        fast: in `fast_precision`, else in float32.
    """

    def __init__(
        self,
        tokens: TokenArray,
        token_bytes: Tensor,
        *,
        block_size: int,
        blocks: int,
        there: Tensor | None = None,
        rows: int = 16,
        fast: bool = False,
    ):
        self._precision = fast_precision if fast else nullcontext
        windows = TokenWindows(tokens, block_size)
        some = np.unique(np.linspace(0, len(windows) - 1, min(blocks, len(windows))).astype(int)).tolist()
        self.batches = [windows.__getitems__(some[i : i + rows]) for i in range(0, len(some), rows)]
        columns = (torch.cat([self._scored(b, vars(b)[x]) for b in self.batches]) for x in _COLUMNS)
        targets, self.documents, positions = columns
        self.absent = torch.zeros(len(targets), dtype=torch.bool) if there is None else ~there[targets]
        more = tokens.other_bytes(tokens.offsets[self.documents.numpy()] + positions.numpy() + 1)  # of lost text
        n_bytes = by_document(token_bytes[targets].double().numpy() + more, self.documents.numpy())
        self.scale = math.log(2) * n_bytes  # nats of each document that make one bit per byte

    @staticmethod
    def _scored(batch: Batch, values: Tensor) -> Tensor:
        return values[batch.targets != IGNORE]

    @torch.no_grad()
    def nats(self, module: nn.Module, head: Tensor | None = None) -> Nats:
        """
        Args:
            head: (V, D) the output matrix in the place of the module's.
        """
        module.eval()
        with self._precision():
            each = [self._scored(b, token_nll(_logits(module, b.input_ids, head), b.targets)) for b in self.batches]
        nats = torch.cat(each).double()
        documents = self.documents.numpy()
        return Nats(by_document(nats.numpy(), documents), by_document((nats * self.absent).numpy(), documents))

    def bits_per_byte(self, nats: Nats) -> float:
        return float(nats.all.sum() / self.scale.sum())


_COLUMNS = ("targets", "document_ids", "positions")


def _logits(module: nn.Module, ids: Tensor, head: Tensor | None) -> Tensor:
    if head is None:
        logits: Tensor = module(ids)
        return logits
    assert isinstance(module, LanguageModule)
    return module.backbone.states(ids).last @ head.T


def ids_in(tokens: TokenArray, vocab_size: int) -> Tensor:
    """(V,) bool, whether an id occurs."""
    return torch.from_numpy(np.bincount(tokens.ids[:], minlength=vocab_size) > 0)


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
    """The model that all arms of a seed start from, and what they keep of its domain."""
    path = state_of(job)
    if path.exists():
        return
    plan, domains = job.plan, begun(job)
    torch.manual_seed(job.seed)
    module = CausalLM(Decoder(**plan.decoder))
    for _ in fit(module, training_batches(domains.first.train, plan.before, job.seed), plan.before, Stopwatch()):
        pass
    some_blocks = list(blocks(domains.first.val, plan.before.block_size, at_most=plan.before.validation_blocks))
    entry.keep(job.folder, job.seed, entry.gain_on_the_same_tokens(MemoryLM(module.backbone, []), some_blocks))
    saved = {"state": module.backbone.state_dict(), "kept": _kept(module, domains, plan, job.seed)}
    with replacing(path) as file:
        torch.save(saved, file)
    print(f"first domain, seed {job.seed}: done", flush=True)


def _kept(module: LanguageModule, domains: Domains, plan: Plan, seed: int) -> dict[str, Any]:
    first, T = domains.first, plan.before.block_size
    vocabulary = {"vocab_size": domains.tokenizer.vocab_size, "start": domains.tokenizer.eot}
    kept = chosen.kept(module.backbone, first.train, first.val, block_size=T, sizes=plan.sizes, seed=seed, **vocabulary)
    windows, watch = TokenWindows(first.train, T), Stopwatch()
    some = np.random.default_rng(seed).permutation(len(windows))[: plan.sizes.fisher].tolist()
    with watch:
        fisher = fisher_information(module.backbone, [windows.__getitems__(some)], seed=seed)
    kept["seconds"]["fisher"] = watch.seconds
    return kept | {"fisher": fisher}


def state_of(job: Job) -> Path:
    return job.folder / f"first-{job.seed}.pt"


def begun(job: Job) -> Domains:
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


def texts_of(domains: Domains, *, scored: bool, **options: Any) -> list[Texts]:
    """Of both domains: those to score, or those to choose on."""
    both = (domains.first, domains.second)
    return [Texts(one.test if scored else one.val, domains.token_bytes, **options) for one in both]


def follow(
    module: LanguageModule, batches: Iterator[Batch], options: Training, texts: Sequence[Texts], *, points: int
) -> store.Record:
    """Train, and score both domains before it, `points` times on the way, and at the end.

    `nats` and `absent` are of the first domain's documents at each point.
    """
    first, second, watch = [], [], Stopwatch()
    every = max(1, options.steps // points)
    for step in fit(module, batches, options, watch):
        if step % every == 0 or step == options.steps:
            first.append(texts[0].nats(module))
            second.append(texts[1].bits_per_byte(texts[1].nats(module)))
    return {
        "steps": options.steps,
        "first": [texts[0].bits_per_byte(nats) for nats in first],
        "second": second,
        "train_seconds": watch.seconds,
        "nats": [nats.all.round(3).tolist() for nats in first],
        "absent": [nats.absent.round(3).tolist() for nats in first],
        "absent_tokens": float(texts[0].absent.float().mean()),
        "scale": texts[0].scale.tolist(),
    }


class Run:
    """One training of an arm on the second domain, scored on its way.

    Args:
        scored: whether it is scored on the texts for it; else on those to choose on.
    """

    def __init__(self, job: Job, trial: Trial, steps: int, *, scored: bool):
        self.job, self.trial, self.domains = job, trial, begun(job)
        self.options = job.plan.training(steps, trial.lr)
        self.saved = torch.load(state_of(job), weights_only=True)
        torch.manual_seed(job.seed)
        self.module = self._new_module()
        there = ids_in(self.domains.second.train, job.plan.vocab_size)
        self.texts = texts_of(
            self.domains, scored=scored, block_size=job.plan.before.block_size, blocks=job.plan.blocks, there=there
        )

    def _new_module(self) -> LanguageModule:
        job, backbone = self.job, Decoder(**self.job.plan.decoder)
        backbone.load_state_dict(self.saved["state"])
        old, arm = self.domains.first.train, ARMS[job.arm]
        return new_module(arm, self.trial.strength, backbone, self.saved["kept"], old, self.options, job.seed)

    def record(self) -> store.Record:
        """What came of it."""
        probes, start = self._probes(), time.process_time()
        before, arm = probe_states(self.module, probes), ARMS[self.job.arm]
        batches = batches_of(arm, self.domains.first.train, self.domains.second.train, self.options, self.job.seed)
        followed = follow(self.module, batches, self.options, self.texts, points=self.job.plan.points)
        old_head = self.saved["state"]["lm_head.weight"]
        return {
            "arm": self.job.arm,
            "seed": self.job.seed,
            **asdict(self.trial),
            **followed,
            "old_matrix": self.texts[0].bits_per_byte(self.texts[0].nats(self.module, old_head)),
            "drift": drift(before, probe_states(self.module, probes)),
            "holds": holds(arm, self.saved["kept"]),
            "setup_seconds": setup_seconds(arm, self.saved["kept"]["seconds"]),
            "seconds": time.process_time() - start,
            "novel": _novel(self.module),
        }

    def _probes(self) -> list[Batch]:
        windows = TokenWindows(self.domains.first.val, self.job.plan.before.block_size)
        return [windows.__getitems__(list(range(min(self.job.plan.probes, len(windows)))))]


def _novel(module: LanguageModule) -> float | None:
    """Share of the new texts that were novel, the mean over the steps."""
    shares = [share for one in module.extensions if isinstance(one, Settled) for share in one.shares]
    return float(np.mean(shares)) if shares else None


DETAILS = ("nats", "absent", "scale")  # that trials do not need


class AnyJob(Protocol):
    """Of this experiment, or of experiments.continual_lora."""

    @property
    def plan(self) -> Any: ...

    @property
    def folder(self) -> Path: ...

    @property
    def seed(self) -> int: ...

    @property
    def arm(self) -> str: ...

    @property
    def part(self) -> Part: ...


def walk(job: AnyJob, run: Callable[[Trial], store.Record], *, start: Trial, widen: bool) -> None:
    """Trials of an arm, each where the ones before it have led; see `next_trial`."""
    while True:
        found = tried(job.arm, store.records(job.folder))
        trial = next_trial(job.arm, found, start=start, at_most=job.plan.trials, widen=widen)
        if trial is None:
            return
        record = {name: x for name, x in run(trial).items() if name not in DETAILS}
        keep(job, record | {"trial": len(found)})


def try_out(job: Job) -> None:
    """Trials of an arm."""

    def run(trial: Trial) -> store.Record:
        return Run(job, trial, job.plan.steps, scored=False).record()

    walk(job, run, start=first_trial(job.arm), widen=job.plan.widen)


def is_scored(job: AnyJob, records: Sequence[store.Record]) -> bool:
    return any((r["arm"], r["seed"], r["trial"], r["part"]) == (job.arm, job.seed, None, job.part) for r in records)


def learn_second(job: Job) -> None:
    """The trial of an arm that was chosen, on the texts to score."""
    records = store.records(job.folder)
    if is_scored(job, records):
        return
    trial = best(tried(job.arm, records))
    steps = job.plan.steps if job.part == "steps" else affordable(job, records)
    keep(job, Run(job, trial, steps, scored=True).record() | {"trial": None})


def affordable(job: Job, records: Sequence[store.Record]) -> int:
    """Steps that an arm can do in the CPU seconds of plain fine-tuning, less those of what it keeps; 1 at least."""
    done = {r["arm"]: r for r in records if (r["seed"], r["trial"], r["part"]) == (job.seed, None, "steps")}
    left = done[PLAIN]["train_seconds"] - done[job.arm]["setup_seconds"]
    return max(1, round(job.plan.steps * left / done[job.arm]["train_seconds"]))


def keep(job: AnyJob, record: store.Record) -> None:
    store.append(job.folder, record | {"part": job.part})
    said = f"{record['first'][-1]:.3f}, {record['second'][-1]:.3f}"
    print(f"{job.arm}, seed {job.seed}, {job.part}, {of_trial(record)}, {record['steps']} steps: {said}", flush=True)


def jobs(plan: Plan, folder: Path) -> list[tuple[Any, list[Job]]]:
    """What can be done at once, after what came before."""

    def some(part: Part, arms: Sequence[str], seeds: Sequence[int]) -> list[Job]:
        return [Job(plan, folder, seed, arm, part) for arm in arms for seed in seeds]

    others = [arm for arm in ARMS if arm != PLAIN]
    return [
        (learn_first, some("first", [PLAIN], plan.seeds)),
        (try_out, some("trial", [PLAIN], plan.seeds[:1])),
        (try_out, some("trial", others, plan.seeds[:1])),
        (learn_second, some("steps", list(ARMS), plan.seeds)),
        (learn_second, some("seconds", others, plan.seeds)),
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
    plans.begin_as(options, folder, plan.rules)
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
