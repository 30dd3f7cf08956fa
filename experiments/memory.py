"""Does a memory help? `python -m experiments.memory [--quick] [--train PATH --heldout PATH [--test PATH]]`

A small language model is trained from scratch on one text. Most arms are read off it; those that must be trained go on
from it for equal steps, beside one that does so without a memory. All are scored on the same held-out tokens. Each arm
and seed appends its results to a file once it is done, and a run that was interrupted goes on from there. Writes the
last section of docs/memory.md, and docs/images/memory_size.png (with `--quick` into the folder of the results).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import after, baselines, entry, gated, own_texts, plans, report, store, storing
from experiments.arguments import ROOT, add_seeds, add_texts, called, command_of, take_texts
from experiments.report import AS_LONG, FURTHER, LONGER, PLAIN
from experiments.runs import MODEL, Scores, Training, blocks, read, seconds_per_token, train
from experiments.statistics import by_document, helped_and_hurt
from experiments.texts import Texts, prepare
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.io import replacing
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.readers.concat import ConcatReader
from lightning_app.memory.readers.distribution import TrimeReader
from lightning_app.models.decoder import Decoder
from lightning_app.training.allocator import tune_allocator

TIMES_LONGER = 4
TRAINED = (FURTHER, *report.TRAINED)  # further, from the model without memory, for as many steps
TIMED_BLOCKS = 100
DOCUMENTS = "documents.npy"  # the number of that of each scored token
RULES = plans.read("memory")
# The main config's optimizers: with AdamW alone the model needs twice the steps, and uses its context less.
TRAINING = Training(
    group=1, lr=4e-3, muon_lr=0.02, steps=RULES.steps, validations=RULES.validations, patience=RULES.patience
)
LATER = replace(TRAINING, steps=600, warmup_steps=50, lr=1e-3, muon_lr=5e-3, validations=3, patience=0)
SUBJECT = MODEL | {"head_gates": True}


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        train, heldout: texts to learn and to choose on.
        test: the one to score; None: the second half of `heldout`.
        model: options of the Decoder.
        training: of the model without memory.
        further: of the arms that go on from it.
        trime: options of its reader. It trains on the batch, and has a memory where it is tested.
        concat, attention: options of their readers.
        after, storing: what is read off the trained model without memory.
        scored_blocks: of each held-out text; None: all.
    """

    train: str
    heldout: str
    test: str | None = None
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    vocab_size: int = 1024
    model: dict[str, Any] = field(default_factory=lambda: dict(SUBJECT))
    training: Training = TRAINING
    further: Training = LATER
    concat: dict[str, Any] = field(default_factory=lambda: dict(CONCAT))
    attention: dict[str, Any] = field(default_factory=lambda: dict(ATTENTION))
    trime: dict[str, Any] = field(default_factory=lambda: dict(TRIME))
    after: after.Options = after.Options()  # noqa: RUF009
    storing: storing.Options = storing.Options()  # noqa: RUF009
    scored_blocks: int | None = None

    @property
    def fingerprint(self) -> str:
        """Of the plan and the texts."""
        return plans.fingerprint(self, texts=(self.train, self.heldout, self.test))


TRIME: dict[str, Any] = {"memory_size": 2000, "num_search_results": 2000, "writes": "evaluation"}


# A hard budget in place of a price per entry, and a memory of its own for each stream.
BUDGET: dict[str, Any] = {
    "memory_size": 2000,
    "store_cost": None,
    "deletion": False,
    "scope": "stream",
    "forgetfulness_factor": 0.0,
    "advanced": {"eviction": "lowest_score"},  # which the writer is taught within the block
}
# Its segments do not see each other, as a segment's input depends on what the one before stores: each has the context
# that the other arms have, and several are a block, in which its writer is taught; the memory is for the test.
CONCAT: dict[str, Any] = {**BUDGET, "num_search_results": 5, "writes": "evaluation"}
# It goes on from a trained model, which it would break if it added all that it reads from the start.
ATTENTION: dict[str, Any] = {**BUDGET, "num_search_results": 32, "next_token": True, "start": 0.1}
SIDE_BY_SIDE = 4  # blocks of a batch that follow each other: what trime learns to read
SEGMENTS = 4  # of a block, for the writers of both


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    return replace(
        plan,
        seeds=plan.seeds[:1],
        model=SUBJECT | {"embedding_dim": 64, "heads": 2},
        training=replace(plan.training, steps=60, warmup_steps=10, validations=2, validation_blocks=20),
        further=replace(plan.further, steps=20, warmup_steps=5, validations=1, validation_blocks=20),
        concat=CONCAT | {"memory_size": 500},
        attention=ATTENTION | {"memory_size": 500},
        trime=TRIME | {"memory_size": 500, "num_search_results": 500},
        storing=replace(plan.storing, budgets=(64, 256), decays=(0.0, 0.01), steps=10, of_attention=(64,)),
        after=replace(
            plan.after,
            cache_size=500,
            tuning_blocks=30,
            sizes=(1000, 3000),
            curve_every=4,
            gated=gated.Options(epochs=1, blocks=80, looks=1),
        ),
        scored_blocks=100,
    )


# Models


def new_model(arm: str, plan: Plan) -> MemoryLM:
    """An untrained one of an arm."""
    training = training_of(plan, arm)
    streams = {"streams": training.batch_size}
    readers: dict[str, list[Reader]] = {
        PLAIN: [],
        FURTHER: [],
        AS_LONG: [],
        LONGER: [],
        "concat": [ConcatReader(**plan.concat, **streams)],
        "attention": [AttentionReader(**plan.attention, **streams)],
        "trime": [TrimeReader(**plan.trime)],
    }
    segment = training.block_size // SEGMENTS if arm in ("concat", "attention") else None
    backbone = _decoder(plan, plan.model | {"block_size": training.block_size})
    return MemoryLM(backbone, readers[arm], segment, isolate_segments=arm == "concat")


def training_of(plan: Plan, arm: str) -> Training:
    """Of an arm: with longer blocks as many tokens a step, in fewer of them; by streams where training has a memory."""
    usual = plan.training if arm == PLAIN else plan.further
    if arm == "attention":
        return replace(usual, streams=True)
    if arm == "trime":
        return replace(usual, group=SIDE_BY_SIDE)
    times = {LONGER: TIMES_LONGER, "concat": SEGMENTS}.get(arm, 1)
    if times == 1:
        return usual
    return replace(
        usual,
        block_size=times * usual.block_size,
        batch_size=max(1, usual.batch_size // times),
        group=1,
        validation_blocks=max(1, usual.validation_blocks // times),
    )


def _decoder(plan: Plan, options: dict[str, Any]) -> Decoder:
    return Decoder(**{"vocab_size": plan.vocab_size, "block_size": plan.training.block_size, **options})


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Jobs: each is one process, and leaves lines in the file of results


@dataclass(frozen=True)
class Job:
    """What a worker is given.

    Attributes:
        arm: a trained arm; None: those that are read off the model without memory, of this seed.
    """

    plan: Plan
    folder: Path
    seed: int
    arm: str | None

    @property
    def base(self) -> Path:
        """Nats (N,) of the model without memory."""
        return self.folder / f"nats-{self.seed}.npy"

    @property
    def arms(self) -> tuple[str, ...]:
        """All lines that it leaves."""
        first = self.seed == self.plan.seeds[0]
        if self.arm == storing.ARM:
            return self.plan.storing.arms
        if self.arm == "attention":
            return ("attention", *self.plan.storing.arms_of_attention)
        return after.arms_of(self.plan.after, first=first) if self.arm is None else (self.arm,)


def texts_of(plan: Plan, folder: Path) -> Texts:
    return prepare(plan.train, plan.heldout, plan.test, vocab_size=plan.vocab_size, folder=folder)


def run_job(job: Job) -> None:
    """Do what is not there yet."""
    missing = [arm for arm in job.arms if (arm, job.seed) not in done(job.folder)]
    if not missing:
        return
    torch.set_num_threads(1)
    tune_allocator()
    texts = texts_of(job.plan, job.folder)
    print(f"{', '.join(missing)}, seed {job.seed}: begins", flush=True)
    if job.arm not in (PLAIN, baselines.PPMD) and not job.base.exists():
        keep_base(job, read(trained(job, PLAIN, texts)[0], scored_blocks(texts, job.plan)))
    if job.arm is None:
        model = trained(job, PLAIN, texts)[0]
        keep = partial(append, job)
        after.run(
            model, texts, scored_blocks(texts, job.plan), job.plan.after, seed=job.seed, missing=missing, keep=keep
        )
    elif job.arm == storing.ARM:
        score_storing(job, texts, missing)
    elif job.arm == baselines.PPMD:
        score_ppmd(job)
    elif job.arm == baselines.DYNAMIC:
        score_dynamic(job, texts)
    elif job.arm in missing:
        score_trained(job, job.arm, texts)
    if job.arm == "attention":
        score_budgets(job, texts, missing)
    print(f"{', '.join(missing)}, seed {job.seed}: done", flush=True)


def trained(job: Job, arm: str, texts: Texts) -> tuple[MemoryLM, dict[str, float]]:
    """From the work folder if it is there; else trained, the arms with a memory from the model without one."""
    path = job.folder / f"{arm.replace(' ', '_')}-{job.seed}.pt"
    torch.manual_seed(job.seed)
    model = new_model(arm, job.plan)
    if arm != PLAIN and not path.exists():
        model.backbone.load_state_dict(trained(job, PLAIN, texts)[0].backbone.state_dict())
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        return model.eval(), saved["facts"]
    training = training_of(job.plan, arm)
    if arm == AS_LONG:
        training = replace(training, steps=steps_for_as_long(job))
    facts = train(model, texts, training, seed=job.seed)
    with replacing(path) as file:
        torch.save({"model": model.state_dict(), "facts": facts}, file)
    return model.eval(), facts


def steps_for_as_long(job: Job) -> int:
    """Without a memory, in the CPU seconds of the dearest arm of the same seed."""
    own = {record["arm"]: record for record in store.records(job.folder) if record["seed"] == job.seed}
    dearest = max(own[arm]["train_seconds"] for arm in TRAINED)
    return round(own[FURTHER]["last_step"] * dearest / own[FURTHER]["train_seconds"])


def score_trained(job: Job, arm: str, texts: Texts) -> None:
    plan = job.plan
    model, facts = trained(job, arm, texts)
    if arm == "trime":
        facts |= tuned_trime(model, texts, plan)
    test = scored_blocks(texts, plan, arm)
    scores, tuned = read(model, test), read(model, tuning_blocks(texts, plan, arm))
    if arm == PLAIN:
        keep_base(job, scores)
        entry.keep(job.folder, job.seed, entry.gain_on_the_same_tokens(model, tuning_blocks(texts, plan)))
    record = {
        **facts,
        "parameters": parameters(model),
        "tuning_nats": float(tuned.nats.mean()),
        "test_bpb": scores.bits_per_byte(texts.test, texts.token_bytes),
        "memory_bytes": sum(after.memory_bytes(reader) for reader in model.readers),
        "seconds_per_token": seconds_per_token(model, test[:TIMED_BLOCKS]),
    }
    append(job, arm, record, scores.nats)


def keep_base(job: Job, scores: Scores) -> None:
    """What the model without memory makes of the text to score: all arms of its seed are compared with it."""
    np.save(job.folder / DOCUMENTS, scores.documents)
    np.save(job.base, scores.nats)


def score_ppmd(job: Job) -> None:
    """Its bits per byte of the whole text: it knows no tokens, and no seeds."""
    found = baselines.ppmd(job.plan.train, job.plan.heldout, job.plan.test)
    if found is not None:
        append(job, baselines.PPMD, found)


def score_storing(job: Job, texts: Texts, missing: Sequence[str]) -> None:
    """All rules and budgets at once: the states are read once."""
    model, plan = trained(job, PLAIN, texts)[0], job.plan
    options = replace(plan.storing, seed=job.seed)
    for arm, record, nats in storing.run(model, texts, tuning_blocks(texts, plan), scored_blocks(texts, plan), options):
        if arm in missing:
            append(job, arm, record, nats)


def score_budgets(job: Job, texts: Texts, missing: Sequence[str]) -> None:
    """The trained arm under smaller budgets, by its own score and by recency."""
    model, plan = trained(job, "attention", texts)[0], job.plan
    test = scored_blocks(texts, plan)
    for size in plan.storing.of_attention:
        for rule in storing.OF_ATTENTION:
            if (arm := storing.arm(rule, size, "attention ")) in missing:
                scores = read(storing.under(model, size, rule), test)
                append(job, arm, {"test_bpb": scores.bits_per_byte(texts.test, texts.token_bytes)}, scores.nats)


def score_dynamic(job: Job, texts: Texts) -> None:
    model, plan = trained(job, PLAIN, texts)[0], job.plan
    record, scores = baselines.dynamic(model, tuning_blocks(texts, plan), scored_blocks(texts, plan))
    bpb = scores.bits_per_byte(texts.test, texts.token_bytes)
    append(job, baselines.DYNAMIC, record | {"test_bpb": bpb}, scores.nats)


def scored_blocks(texts: Texts, plan: Plan, arm: str = PLAIN) -> list[Batch]:
    """Those of the text to score: the same tokens for each arm."""
    return _blocks(texts.test, plan, arm, plan.scored_blocks)


def tuning_blocks(texts: Texts, plan: Plan, arm: str = PLAIN) -> list[Batch]:
    """Those of the text to choose on by which all arms are compared, as `after` does it."""
    return _blocks(texts.val, plan, arm, plan.after.tuning_blocks)


def _blocks(text: TokenArray, plan: Plan, arm: str, n: int | None) -> list[Batch]:
    """As many tokens as `n` of the usual blocks have; None: all."""
    size = training_of(plan, arm).block_size
    return list(blocks(text, size, at_most=None if n is None else n * plan.training.block_size // size))


def tuned_trime(model: MemoryLM, texts: Texts, plan: Plan) -> dict[str, float]:
    """Temperature and weight of the entries, moved from where training left them to what validation likes best.

    The other arms' weights are chosen on validation as well, by as many trials; and the memory holds more than a
    training batch did.
    """
    reader = model.readers[0]
    assert isinstance(reader, TrimeReader)
    tuning = list(blocks(texts.val, plan.training.block_size, at_most=plan.training.validation_blocks))

    def bpb(temperature: float, weight: float) -> float:
        reader.tune(temperature=temperature, weight=weight)
        return read(model, tuning).bits_per_byte(texts.val, texts.token_bytes)

    T, a = reader.temperature, reader.weight
    best = min((bpb(x, a), x, a) for x in (T / 2, T, 2 * T, 4 * T))
    best = min([best, *((bpb(best[1], x), best[1], x) for x in (a / 4, a / 2, 2 * a, 4 * a))])
    reader.tune(temperature=best[1], weight=best[2])
    return {"temperature": best[1], "weight": best[2], "tuned_val_bpb": best[0]}


def append(job: Job, arm: str, record: dict[str, Any], nats: np.ndarray | None = None) -> None:
    """Results of an arm, one line: of nats (N,) of each token the sums over documents, and how many tokens of the
    model without memory, of the same seed, are helped and hurt."""
    if nats is not None:
        helped, hurt = helped_and_hurt(nats, np.load(job.base))
        sums = by_document(nats, np.load(job.folder / DOCUMENTS)).round(3).tolist()
        record = {**record, "tokens": len(nats), "helped": helped, "hurt": hurt, "nats": sums}
    store.append(job.folder, {"arm": arm, "seed": job.seed, **record})


def done(folder: Path) -> set[tuple[str, int]]:
    return {(record["arm"], record["seed"]) for record in store.records(folder)}


def jobs(plan: Plan, folder: Path) -> list[list[Job]]:
    """What can be done at once, after what came before: the model without memory, and then seed by seed the others, so
    that a run that ends early has whole seeds; and what is trained for as long as they are."""
    others = (None, *TRAINED, storing.ARM, baselines.DYNAMIC)
    plain = [Job(plan, folder, seed, PLAIN) for seed in plan.seeds]
    rest = [Job(plan, folder, seed, arm) for seed in plan.seeds for arm in others]
    equal = [Job(plan, folder, seed, AS_LONG) for seed in plan.seeds]
    return [plain, [Job(plan, folder, plan.seeds[0], baselines.PPMD), *rest], equal]


def run_all(
    plan: Plan, folder: Path, *, workers: int, quick: bool = False, do: Callable[[Job], None] = run_job
) -> None:
    """By worker processes of one thread each. If the model without memory does not use its context, it is the last."""
    with store.counted(folder):
        texts_of(plan, folder)  # once, before they all want it
    first, *others = jobs(plan, folder)
    store.do_all(do, first, workers=workers, folder=folder)
    for stage in others if entry.proceed(folder, plan.rules, quick=quick) else []:
        store.do_all(do, stage, workers=workers, folder=folder)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.memory", description=__doc__)
    add_texts(parser, default="this project's source")
    add_seeds(parser, RULES.seeds)
    parser.add_argument("--quick", action="store_true", help="in small: one seed, a few steps")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_memory"), help="where results are kept")
    parser.add_argument("--out", default=None, help="folder of the page and the picture; docs, or with --quick WORK")
    plans.add_allowance(parser)
    plans.add_go_on(parser)
    options = parser.parse_args(words)
    command = command_of("experiment-memory", options)
    if (options.train, options.heldout, options.test) == (None, None, None):
        options.train, options.heldout = own_texts.write_halves(Path(options.work) / "texts")
    options = take_texts(options)
    plan = Plan(options.train, options.heldout, options.test, seeds=tuple(options.seeds or RULES.seeds))
    plan = quick(plan) if options.quick else plan
    folder = Path(options.work) / plan.fingerprint
    plans.begin_as(options, folder, plan.rules)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    run_all(plan, folder, workers=options.workers, quick=options.quick)
    out = Path(options.out) if options.out else (folder if options.quick else ROOT / "docs")
    print(report.write(folder, asdict(plan), out, command=command))


if __name__ == "__main__":
    called(main)
