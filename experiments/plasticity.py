"""Is plasticity real? `python -m experiments.plasticity [--quick | --full] [--train PATH --heldout PATH] ...`

A small language model is trained from scratch; then heads are removed by each strategy, at several levels, and all arms
are trained for as many further steps, on the same batches in the same order, as the model of which nothing was removed.
A run that was interrupted goes on. Writes the last section of docs/plasticity.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import plans, plasticity_page, store, untrained
from experiments.arguments import ROOT, add_texts, called, command_of, take_texts
from experiments.cloze import Item, accuracy, items_of
from experiments.continual import Texts
from experiments.plasticity_page import DEFAULT, UNPRUNED
from experiments.runs import Training, fast_precision, new_optimizer, training_batches
from experiments.texts import Texts as Corpus
from experiments.texts import held_out, pieces, prepare
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.windows import TokenWindows
from lightning_app.io import replacing
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import IGNORE, cross_entropy, token_nll
from lightning_app.plasticity.controller.networks import ControllerImportance
from lightning_app.plasticity.importance import (
    EntropyImportance,
    GradientImportance,
    GradientNormImportance,
    HardConcreteImportance,
    Importance,
    LeaveOneOut,
    MagnitudeImportance,
    RandomImportance,
    Sample,
    SeedImportance,
    SubsetImportance,
    TaylorImportance,
    gate_gradients,
    measured,
)
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.learning_rates import HeadRates
from lightning_app.plasticity.pruning import as_mask, choose, choose_widths, dead_after, most_missed
from lightning_app.plasticity.scores import spearman
from lightning_app.training.allocator import tune_allocator

OTHER_ORDER, SMALLER = "unpruned, other order", "smaller from scratch"
DRAWS = 5
RULES = plans.read("plasticity")
LEVELS = (0.15, 0.3, 0.5, 0.75)
STRATEGIES: dict[str, Importance] = {
    DEFAULT: TaylorImportance(),
    "gradient": GradientImportance(),
    "Fisher": GradientImportance(moment=2),
    "seed's mix": SeedImportance(),
    "seed's gradient norm": GradientNormImportance(),
    "entropy": EntropyImportance(),
    "magnitude": MagnitudeImportance(),
    "Hard Concrete": HardConcreteImportance(steps=120),
    "exact subset": SubsetImportance(steps=120),
    "controller": ControllerImportance(),
    "leave one out": LeaveOneOut(),
    **{f"random {i}": RandomImportance(seed=i) for i in range(DRAWS)},
}
RANDOM = tuple(name for name in STRATEGIES if name.startswith("random"))
FINETUNED = tuple(name for name in STRATEGIES if name != "Fisher")  # in the default selection
OF_THE_SET = ("exact subset",)  # whose scores depend on how many stay


@dataclass(frozen=True)
class Arm:
    """How a model goes on from where all are the same.

    Attributes:
        level: share of the heads that go.
        neurons: share of the feed-forward neurons.
        cycles: 1: all at once.
        regrow: heads more that go, and come back where they are missed most.
        layer_factor: of the learning rate of blocks that lost heads.
        head_factor: of the updates of heads in layers that lost some, as far as they did.
    """

    strategy: str
    level: float = 0.0
    neurons: float = 0.0
    cycles: int = 1
    regrow: int = 0
    layer_factor: float = 1.0
    head_factor: float = 1.0

    @property
    def name(self) -> str:
        """Strategy, level, and whatever differs from one shot at heads alone."""
        shown = {
            "neurons": f"{self.neurons:.0%} of neurons",
            "cycles": f"{self.cycles} cycles",
            "regrow": f"{self.regrow} regrown",
            "layer_factor": f"layers x {self.layer_factor:g}",
            "head_factor": f"heads x {self.head_factor:g}",
        }
        plain = Arm(self.strategy)
        more = [text for key, text in shown.items() if getattr(self, key) != getattr(plain, key)]
        level = [f"{self.level:.0%}"] if self.level else []
        return ", ".join([self.strategy, *level, *more])


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        train, heldout: texts to learn, and to measure importance and choose on.
        second: a text of another kind, which is scored too.
        test: the text to score; None: the second half of `heldout`.
        training: of the model; its steps come before the pruning, at a constant learning rate.
        finetuning: steps after it, in which the learning rate falls to `floor` by a cosine.
        sample: sequences that importance is measured on, in batches of 8.
        blocks: of each test text that are scored.
        items: of the cloze test.
    """

    train: str
    heldout: str
    second: str
    test: str | None = None
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    vocab_size: int = 1024
    model: dict[str, Any] = field(
        default_factory=lambda: {"embedding_dim": 128, "layers": 4, "heads": 8, "positions": "rotary"}
    )
    training: Training = Training(group=1, steps=600, warmup_steps=50)  # noqa: RUF009  (frozen)
    finetuning: int = 200
    floor: float = 0.05
    sample: int = 96
    blocks: int = 192
    items: int = 200
    full: bool = False

    @property
    def fingerprint(self) -> str:
        """Of the plan and the texts; which arms there are does not change the results of others."""
        texts = (self.train, self.heldout, self.second, self.test)
        return plans.fingerprint(self, texts=texts, leaving=("seeds", "full"))

    @property
    def decoder(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "block_size": self.training.block_size, **self.model}


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    model = plan.model | {"embedding_dim": 64, "layers": 2}
    training = replace(plan.training, steps=60, warmup_steps=10)
    return replace(
        plan, seeds=plan.seeds[:1], model=model, training=training, finetuning=20, sample=16, blocks=16, items=20
    )


def arms(plan: Plan) -> list[Arm]:
    """The default selection, or the full grid."""
    if plan.full:
        grid = [Arm(name, level) for name in STRATEGIES for level in LEVELS]
    else:
        grid = [Arm(name, level) for level in (0.3, 0.5) for name in FINETUNED]
        grid += [Arm(DEFAULT, 0.15), Arm(DEFAULT, 0.75)]
    ideas: list[dict[str, Any]] = [{"cycles": 3}, {"regrow": 3}, {"layer_factor": 3.0}, {"head_factor": 3.0}]
    further = [Arm(DEFAULT, level, **idea) for level in (0.3, 0.5) for idea in ideas]
    further += [
        Arm(DEFAULT, level, neurons=n) for level, n in ((0, 0.3), (0.5, 0.3), (0.5, 0.5), (0.75, 0.3), (0.75, 0.5))
    ]
    return [Arm(UNPRUNED), Arm(OTHER_ORDER), Arm(SMALLER, 0.5), *grid, *further]


@dataclass(frozen=True)
class Job:
    plan: Plan
    folder: Path
    seed: int
    arm: Arm | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.arm.name if self.arm else "scores", self.seed


# Texts


class Evidence:
    """What models are trained on, judged by and scored with."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder
        self.corpus: Corpus = prepare(plan.train, plan.heldout, plan.test, vocab_size=plan.vocab_size, folder=folder)
        self.tokenizer = self.corpus.tokenizer

    def test(self) -> dict[str, Texts]:
        """Blocks of the text to score, and of the one of another kind."""
        return {"test": self._blocks(self.corpus.test), "unseen": self._blocks(self._unseen)}

    @property
    def _unseen(self) -> TokenArray:
        return prepare_tokens(pieces(self.plan.second), self.tokenizer, self.folder / "tokens")

    def keep_untrained(self) -> None:
        """What counts and a compressor make of both texts."""
        tests = {"text to score": self.corpus.test, "unseen text": self._unseen}
        learned, val = [self.corpus.train], self.corpus.val
        texts = {name: untrained.Text(learned, val, test) for name, test in tests.items()}
        untrained.keep(self.folder, texts, self.tokenizer)

    def heldout(self) -> Texts:
        """Blocks of the text to choose on."""
        return self._blocks(self.corpus.val)

    def _blocks(self, tokens: TokenArray) -> Texts:
        return Texts(tokens, self.corpus.token_bytes, _Sized(self.plan.training, self.plan.blocks))

    @cached_property
    def cloze(self) -> list[Item]:
        """Of the text to score, from a file that is written when it is first needed."""
        documents = [document.text for document in held_out(self.plan.heldout, self.plan.test)[1]]
        return items_of(self.folder / "cloze.jsonl", documents, n=self.plan.items)

    def sample(self, model: Decoder, seed: int) -> Sample:
        """Of the text to choose on."""
        windows = TokenWindows(self.corpus.val, self.plan.training.block_size)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()[: self.plan.sample]

        def loss(batch: Batch) -> Tensor:
            nll = token_nll(model(batch.input_ids), batch.targets)
            return nll.sum(-1) / (batch.targets != IGNORE).sum(-1).clamp_min(1)

        return Sample([windows.__getitems__(order[i : i + 8]) for i in range(0, len(order), 8)], loss)


@dataclass(frozen=True)
class _Sized:
    """What `Texts` asks of a plan."""

    before: Training
    blocks: int


# Training


class Run:
    """A model, its optimizer and the number of steps done."""

    def __init__(self, plan: Plan, evidence: Evidence, seed: int, *, order: int | None = None, **sizes: int):
        torch.manual_seed(seed)
        self.plan, self.seed, self.step = plan, seed, 0
        self.model = Decoder(**{**plan.decoder, **sizes})
        self.optimizer = new_optimizer(self.model, plan.training)
        order = seed if order is None else order
        self.batches = training_batches(evidence.corpus.train, plan.training, order)
        self.seconds = 0.0

    def factor(self) -> float:
        """Of the learning rate: a warm-up, constant, and a cosine once heads may be gone."""
        options, past = self.plan.training, self.step - self.plan.training.steps
        if past < 0:
            return min(1.0, (self.step + 1) / options.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * past / self.plan.finetuning))
        return self.plan.floor + (1 - self.plan.floor) * cosine

    def train(self, steps: int) -> None:
        """In `fast_precision`."""
        options = self.plan.training
        self.model.train()
        start = time.process_time()
        for batch in islice(self.batches, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = options.lr * self.factor() * group.get("multiple", 1.0)
            with fast_precision():
                loss = cross_entropy(self.model(batch.input_ids), batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        self.seconds += time.process_time() - start

    def skip(self, steps: int) -> None:
        """As if so many had been done: their batches are passed over."""
        for _ in islice(self.batches, steps):
            pass
        self.step += steps

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "seconds": self.seconds}
        with replacing(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skip(self.plan.training.steps)


def _base(job: Job) -> Path:
    return job.folder / f"base-{job.seed}.pt"


def _begin(job: Job) -> Evidence:
    torch.set_num_threads(1)
    tune_allocator()
    return Evidence(job.plan, job.folder)


def train_base(job: Job) -> None:
    """The model that all arms of a seed begin with."""
    if _base(job).exists():
        return
    run = Run(job.plan, _begin(job), job.seed)
    run.train(job.plan.training.steps)
    run.save(_base(job))
    print(f"seed {job.seed}: trained, {run.seconds:.0f} CPU s", flush=True)


def _loaded(job: Job, evidence: Evidence, **options: Any) -> Run:
    run = Run(job.plan, evidence, job.seed, **options)
    run.load(_base(job))
    return run


# Choosing


def chosen(scores: Tensor, alive: Tensor, n: int) -> Tensor:
    """(L, H) bool: the n that go."""
    return as_mask(choose(scores, alive, n), alive.shape)


def score_all(job: Job) -> None:
    """Scores of all strategies, and what each level costs before any fine-tuning."""
    if job.key in done(job.folder):
        return
    evidence = _begin(job)
    run, tests = _loaded(job, evidence), evidence.test()
    model = run.model.eval()
    heads, sample = units_of(model, "heads"), evidence.sample(model, job.seed)
    total = math.prod(heads.shape)
    record: dict[str, Any] = {"arm": "scores", "seed": job.seed, "strategies": {}}
    record["whole"] = {name: text.nats(model) for name, text in tests.items()}
    record["scale"] = {name: text.scale.tolist() for name, text in tests.items()}
    for name, strategy in STRATEGIES.items():
        start, levels = time.process_time(), {}
        of_level = {
            level: measured(strategy, heads, sample, keep=total - dead_after(level, total, 1, 1))
            for level in (LEVELS if name in OF_THE_SET else LEVELS[-1:])
        }
        seconds = (time.process_time() - start) / len(of_level)
        for level in LEVELS:
            dead = chosen(of_level.get(level, of_level[LEVELS[-1]]), heads.mask, dead_after(level, total, 1, 1))
            heads.set_mask(~dead)
            levels[f"{level}"] = {
                "dead": dead.int().tolist(),
                **{which: text.nats(model) for which, text in tests.items()},
            }
            heads.set_mask(torch.ones_like(dead))
        scores = of_level[LEVELS[-1]]
        record["strategies"][name] = {"scores": scores.tolist(), "seconds": seconds, "levels": levels}
        print(f"scores of {name}, seed {job.seed}: {seconds:.1f} CPU s", flush=True)
    oracle = torch.tensor(record["strategies"]["leave one out"]["scores"], dtype=torch.float64)
    for found in record["strategies"].values():
        found["spearman"] = spearman(torch.tensor(found["scores"], dtype=torch.float64), oracle)
    record["heldout_spearman"] = predicted(heads, sample, oracle, seed=job.seed)
    store.append(job.folder, record)


def predicted(heads: Any, sample: Sample, oracle: Tensor, *, seed: int) -> float:
    """Rank correlation of what the controller predicts with the damage, of heads that it did not learn from."""
    controller = ControllerImportance(seed=seed)
    scores = measured(controller, heads, sample, keep=1)
    for unit in controller.measured:
        scores[unit] = math.nan
    return spearman(scores, oracle)


# Arms


def prune(run: Run, arm: Arm, evidence: Evidence, cycle: int, scores: Tensor | None = None) -> None:
    """Remove what a cycle of an arm takes; the optimizer's state goes along."""
    heads = units_of(run.model, "heads")
    total = math.prod(heads.shape)
    n = dead_after(arm.level, total, cycle, arm.cycles) - int((~heads.mask).sum()) + arm.regrow
    sample = evidence.sample(run.model, run.seed)
    run.model.eval()
    if arm.level:
        if scores is None:
            scores = measured(STRATEGIES[arm.strategy], heads, sample, keep=int(heads.mask.sum()) - n)
        heads.remove(chosen(scores, heads.mask, n), run.optimizer)
    if arm.regrow:
        regrow(run, arm.regrow, sample)
    if arm.neurons:
        neurons = units_of(run.model, "neurons")
        goal = dead_after(arm.neurons, math.prod(neurons.shape), cycle, arm.cycles) - int((~neurons.mask).sum())
        scores = measured(GradientImportance(), neurons, sample, keep=0)
        neurons.remove(choose_widths(scores, neurons.mask, goal), run.optimizer, keep=False)


def regrow(run: Run, n: int, sample: Sample) -> None:
    """Bring back the n dead heads that are missed most, as they were."""
    heads = units_of(run.model, "heads")
    alive = heads.mask
    for i, head in (~alive).nonzero().tolist():
        heads.regrow(i, head, "undo", run.optimizer)
    heads.set_mask(alive)
    missed = gate_gradients(heads, sample, open_masks=True).abs().mean(0)
    for unit in most_missed(missed, alive, n):
        alive[unit] = True
    heads.set_mask(torch.ones_like(alive))
    heads.remove(~alive, run.optimizer)


def set_rates(run: Run, arm: Arm) -> None:
    """Faster where heads were lost."""
    heads = units_of(run.model, "heads")
    lost = 1 - heads.mask.float().mean(1)
    if arm.layer_factor != 1:
        blocks = run.model.transformer["h"]
        fast = {id(p) for i, block in enumerate(blocks) if lost[i] > 0 for p in block.parameters()}
        groups = run.optimizer.param_groups
        for group in list(groups):
            quick_ones = [p for p in group["params"] if id(p) in fast]
            group["params"] = [p for p in group["params"] if id(p) not in fast]
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append({**options, "params": quick_ones, "multiple": arm.layer_factor})
    if arm.head_factor != 1:
        factors = (1 + (arm.head_factor - 1) * lost[:, None]).expand(heads.shape).clone()
        HeadRates(heads, factors).attach(run.optimizer)


def finetune(job: Job) -> None:
    """Prune, train on, and keep the numbers."""
    arm = job.arm
    if arm is None or job.key in done(job.folder):
        return
    evidence, plan = _begin(job), job.plan
    if arm.strategy == SMALLER:
        run = Run(plan, evidence, job.seed, heads=plan.model["heads"] // 2, head_size=_head_size(plan))
        run.train(plan.training.steps)
        begun = run.seconds
    else:
        other = {"order": job.seed + 1000} if arm.strategy == OTHER_ORDER else {}
        run, begun = _loaded(job, evidence, **other), 0.0
    scores = next((r for r in store.records(job.folder) if (r["arm"], r["seed"]) == ("scores", job.seed)), None)
    for cycle in range(1, arm.cycles + 1):
        if arm.strategy in STRATEGIES:
            known = scores and arm.cycles == 1 and arm.strategy not in OF_THE_SET and not arm.regrow
            kept = scores["strategies"][arm.strategy]["scores"] if scores and known else None
            prune(run, arm, evidence, cycle, None if kept is None else torch.tensor(kept, dtype=torch.float64))
            set_rates(run, arm)
        last = cycle == arm.cycles
        run.train(
            plan.finetuning - (arm.cycles - 1) * (plan.finetuning // arm.cycles)
            if last
            else plan.finetuning // arm.cycles
        )
    store.append(
        job.folder,
        {"arm": arm.name, "seed": job.seed, **judged(run, evidence), "training_seconds": run.seconds - begun},
    )
    print(f"{arm.name}, seed {job.seed}: {run.seconds - begun:.1f} CPU s", flush=True)


def _head_size(plan: Plan) -> int:
    return int(plan.model["embedding_dim"]) // int(plan.model["heads"])


def judged(run: Run, evidence: Evidence) -> dict[str, Any]:
    """Nats of each document of the texts, right answers, what the model costs, and how much faster it is."""
    model = run.model.eval()
    whole = Decoder(**run.plan.decoder).eval()
    texts = {"heldout": evidence.heldout(), **evidence.test()}
    found: dict[str, Any] = {name: text.nats(model) for name, text in texts.items()}
    length = run.plan.training.block_size
    parts = {kind: units_of(model, kind) for kind in ("heads", "neurons")}
    return found | {
        "cloze": accuracy(model, evidence.tokenizer, evidence.cloze),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_whole": sum(p.numel() for p in whole.parameters()),
        "flops": model.flops_per_token(length),
        "flops_whole": whole.flops_per_token(length),
        "heads": int(parts["heads"].mask.sum()),
        "neurons": int(parts["neurons"].mask.sum()),
        "speedup": speedup(whole, model, length),
    }


@torch.no_grad()
def speedup(whole: Decoder, model: Decoder, length: int, *, rounds: int = 15) -> float:
    """CPU time of a forward of the whole model over that of this one, in fp32: shortest of the rounds, in turns."""
    ids = torch.zeros(8, length, dtype=torch.int64)
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for i, one in enumerate((whole, model)):
            start = time.process_time()
            one(ids)
            times[i].append(time.process_time() - start)
    return min(times[0]) / min(times[1])


def done(folder: Path) -> set[tuple[str, int]]:
    return {(record["arm"], record["seed"]) for record in store.records(folder)}


def parsed(words: Sequence[str] | None) -> tuple[Plan, Path, argparse.Namespace]:
    """Plan, folder of the results, and options."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plasticity", description=__doc__)
    add_texts(parser, second="text or folder of another kind, which is scored too")
    parser.add_argument("--quick", action="store_true", help="in small: one seed, a few steps")
    parser.add_argument("--full", action="store_true", help="fine-tune all strategies at all levels")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_plasticity"), help="where results are kept")
    parser.add_argument("--out", default=None, help="folder of page and pictures; docs, or with --quick WORK")
    plans.add_allowance(parser)
    options = take_texts(parser.parse_args(words))
    plan = Plan(options.train, options.heldout, options.second, options.test, full=options.full)
    plan = quick(plan) if options.quick else plan
    folder = Path(options.work) / plan.fingerprint
    plans.begin(folder, plan.rules, quick=options.quick, allow_uncommitted=options.allow_uncommitted)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    with store.counted(folder):
        evidence = Evidence(plan, folder)  # once, before all workers want it
        evidence.test()
    print(f"{len(evidence.cloze)} cloze items; results in {folder}", flush=True)
    return plan, folder, options


def main(words: Sequence[str] | None = None) -> None:
    plan, folder, options = parsed(words)
    Evidence(plan, folder).keep_untrained()
    store.do_all(train_base, [Job(plan, folder, seed) for seed in plan.seeds], workers=options.workers, folder=folder)
    store.do_all(score_all, [Job(plan, folder, seed) for seed in plan.seeds], workers=options.workers, folder=folder)
    every = [Job(plan, folder, seed, arm) for arm in arms(plan) for seed in plan.seeds]
    store.do_all(finetune, every, workers=options.workers, folder=folder)
    out = Path(options.out) if options.out else folder if options.quick else ROOT / "docs"
    print(plasticity_page.write(folder, asdict(plan), out, command=command_of("experiment-plasticity", options)))


if __name__ == "__main__":
    called(main)
