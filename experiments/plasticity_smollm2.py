"""What does a pretrained model lose with some of its groups and neurons? `python -m experiments.plasticity_smollm2`

Key-value groups and neurons of SmolLM2 are masked by importance, by the norm of their weights and at random; some of
these models are cut and trained on with LoRA, beside the unpruned one with the same training. Each line of the results
is a job, and a run that was interrupted goes on. Writes a section of docs/plasticity.md, and
docs/results/plasticity_smollm2.jsonl (with `--quick` into the folder of the results).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import newer_states, plans, plasticity_smollm2_page, store
from experiments.arguments import ROOT, add_texts, called, command_of, take_texts
from experiments.continual import Texts
from experiments.plasticity_runs import Loss, backward, loss_of, plain, speedup, taught_by
from experiments.runs import Training, fast_precision, new_optimizer, training_batches
from experiments.texts import articles, check_apart, held_out
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.data.windows import TokenWindows
from lightning_app.models.backbone import Backbone
from lightning_app.models.lora import LoRA
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.importance import (
    GateImportance,
    GradientImportance,
    MagnitudeImportance,
    RandomImportance,
    Sample,
    TaylorImportance,
    gate_gradients,
    measured,
)
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.pruning import as_mask, choose, choose_widths, dead_after
from lightning_app.plasticity.units import Units
from lightning_app.training.allocator import tune_allocator
from lightning_app.training.precision import has_fast_bf16
from lightning_app.training.schedulers import WarmupCosine

RULES = plans.read("plasticity_smollm2")
TAYLOR, GRADIENT, MAGNITUDE, RANDOM = "Taylor", "gradient", "magnitude", "random"
DEFAULTS = f"{TAYLOR} and {GRADIENT}"  # the product's: of groups, and of neurons
UNPRUNED, UNTRAINED, TAUGHT, TIMES = "unpruned", "untrained", "taught", "times"
LOSSES = "losses.jsonl"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Cut:
    """Shares of the key-value groups and of the neurons that go."""

    groups: float = 0.0
    neurons: float = 0.0

    @property
    def name(self) -> str:
        if not (self.groups or self.neurons):
            return UNPRUNED
        what = "both" if self.groups and self.neurons else "groups" if self.groups else "neurons"
        return f"{max(self.groups, self.neurons):.0%} of {what}"

    @property
    def shares(self) -> dict[Kind, float]:
        return {"heads": self.groups, "neurons": self.neurons}


@dataclass(frozen=True)
class Arm:
    """A model that has lost something.

    Attributes:
        strategy: TAYLOR, GRADIENT, DEFAULTS, MAGNITUDE, or a draw: RANDOM has that of the seed, `random 1` its own.
        tokens: that importance is measured on; 0: the plan's.
        trained: with LoRA, afterwards.
        taught: by the unpruned model as it was.
    """

    cut: Cut = Cut()
    strategy: str = ""
    tokens: int = 0
    trained: bool = False
    taught: bool = False

    @property
    def name(self) -> str:
        strategy = f"{self.strategy} from {self.tokens} tokens" if self.tokens else self.strategy
        more = [TAUGHT] if self.taught else [] if self.trained else [UNTRAINED]
        return ", ".join(part for part in (self.cut.name, strategy, *more) if part)


CUTS = (Cut(groups=0.1), Cut(groups=0.3), Cut(neurons=0.1), Cut(neurons=0.3))
RECOVERED = (Cut(groups=0.1), Cut(groups=0.3), Cut(groups=0.1, neurons=0.1))
TIMED = (*(Cut(level, level) for level in (0.1, 0.2, 0.3)), *CUTS)


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        model: a directory of Hugging Face's.
        train, heldout: texts to measure importance on and to train on; and one that is left alone but for its half.
        test: the text to score; None: the second half of `heldout`.
        block: tokens of the windows that importance is measured on and that are scored.
        tokens: that importance is measured on.
        amounts: other numbers of them, for TAYLOR and groups.
        scored: tokens of the test, in windows that are spread evenly.
        training: with LoRA.
        rounds: of timing.
        cuts: what goes before any training, by each strategy.
        recovered: what goes before a training.
        timed: what goes before a forward is timed.
    """

    model: str
    train: str
    heldout: str
    test: str | None = None
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    block: int = 512
    tokens: int = 8000
    amounts: tuple[int, ...] = (1000, 8000, 32000)
    scored: int = 20000
    training: Training = Training(  # noqa: RUF009  (frozen)
        block_size=256, batch_size=1, group=1, steps=RULES.steps, lr=5e-4, warmup_steps=10, weight_decay=0.01
    )
    lora: dict[str, Any] = field(default_factory=lambda: {"r": 8, "alpha": 16.0, "target_modules": PROJECTIONS})
    rounds: int = 7
    cuts: tuple[Cut, ...] = CUTS
    recovered: tuple[Cut, ...] = RECOVERED
    timed: tuple[Cut, ...] = TIMED

    @property
    def fingerprint(self) -> str:
        texts = (self.train, self.heldout, self.test)
        return plans.fingerprint(self, newer_states.digest_of(self.model), texts=texts)

    @property
    def blocks(self) -> int:
        return max(1, self.scored // self.block)


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    training = replace(plan.training, block_size=32, steps=2, warmup_steps=1)
    sizes: dict[str, Any] = {"block": 64, "tokens": 128, "amounts": (64,), "scored": 192, "rounds": 1}
    sizes |= {"cuts": CUTS[1:3], "recovered": RECOVERED[2:], "timed": TIMED[2:3]}
    return replace(plan, seeds=plan.seeds[:1], training=training, **sizes)


def untrained_arms(plan: Plan) -> list[Arm]:
    """Of the first seed alone."""
    return [Arm(), *(Arm(cut, name) for cut in plan.cuts for name in _strategies(cut))]


def _strategies(cut: Cut) -> list[str]:
    """Neurons also by their default."""
    return [TAYLOR, *([GRADIENT] if cut.neurons else []), MAGNITUDE, f"{RANDOM} 0", f"{RANDOM} 1"]


def amounts_of(plan: Plan) -> list[Arm]:
    """How much text the importance of groups needs."""
    return [Arm(cut, TAYLOR, tokens=tokens) for cut in plan.cuts if not cut.neurons for tokens in plan.amounts]


def trained_arms(plan: Plan) -> list[Arm]:
    arms = [Arm(trained=True)]
    for cut in plan.recovered:
        ours = Arm(cut, DEFAULTS if cut.neurons else TAYLOR, trained=True)
        arms += [ours, replace(ours, taught=True), Arm(cut, RANDOM, trained=True)]
    return arms


# A job is one line of the results


@dataclass(frozen=True)
class Job:
    """An arm of a seed; None: all times."""

    plan: Plan
    folder: Path
    seed: int
    arm: Arm | None

    @property
    def key(self) -> tuple[str, int]:
        return self.arm.name if self.arm else TIMES, self.seed


class Subject:
    """The model and the texts of a job, each made when it is first needed."""

    def __init__(self, job: Job):
        self.job, self.plan, self.folder = job, job.plan, job.folder
        self.tokenizer = load_tokenizer(job.plan.model)

    @cached_property
    def texts(self) -> tuple[TokenArray, TokenArray]:
        """To measure and train on, and to score."""
        chosen, scored = held_out(self.plan.heldout, self.plan.test)
        parts = [
            prepare_tokens(some, self.tokenizer, self.folder / "tokens")
            for some in (articles(self.plan.train), chosen, scored)
        ]
        check_apart(parts)
        return parts[0], parts[2]

    def whole(self, **options: Any) -> PretrainedLM:
        return PretrainedLM(pretrained=self.plan.model, **options)

    def nats(self, model: Backbone) -> dict[str, list[float]]:
        """Of each document, and how many nats make one bit per byte."""
        sizes = torch.from_numpy(self.tokenizer.token_bytes()).long()
        sizes = torch.nn.functional.pad(sizes, (0, model.vocab_size - len(sizes)))
        T, n = self.plan.block, self.plan.blocks
        text = Texts(self.texts[1], sizes, block_size=T, blocks=n, rows=1, fast=True)  # 49,152 logits a token
        return {"test": text.nats(model).all.tolist(), "scale": text.scale.tolist()}

    # Importance

    def sample(self, model: Backbone, tokens: int) -> Sample:
        """Windows of the text to train on, drawn by the seed: fewer tokens are the first of more."""
        windows = TokenWindows(self.texts[0], self.plan.block)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(self.job.seed)).tolist()
        return Sample([windows.__getitems__([i]) for i in order[: -(-tokens // self.plan.block)]], _fast(model))

    def scores(self, model: Backbone, kind: Kind, arm: Arm) -> Tensor:
        units, tokens = units_of(model, kind), arm.tokens or self.plan.tokens
        by_gradients: dict[str, GateImportance] = {TAYLOR: TaylorImportance(), GRADIENT: GradientImportance()}
        by_gradients[DEFAULTS] = by_gradients[TAYLOR if kind == "heads" else GRADIENT]
        if arm.strategy in by_gradients:
            sample = self.sample(model, tokens)
            gradients = self.gradients(units, tokens)[: len(sample.batches)]
            return by_gradients[arm.strategy].by_gradients(gradients, units, sample)
        draw = arm.strategy.removeprefix(RANDOM).strip()
        is_norm = arm.strategy == MAGNITUDE
        strategy = MagnitudeImportance() if is_norm else RandomImportance(int(draw) if draw else self.job.seed)
        return measured(strategy, units, self.sample(model, 1), keep=0)

    def gradients(self, units: Units, tokens: int) -> Tensor:
        """(S, L, N) at the gates, kept: of the largest amount of tokens that any arm asks for."""
        amounts = self.plan.amounts if units.kind == "heads" else ()
        most = max(tokens, self.plan.tokens, *amounts)
        path = self.folder / "gradients" / f"{units.kind}-{self.job.seed}.pt"
        return newer_states.kept(path, partial(self._gradients, units, most))["gradients"]

    def _gradients(self, units: Units, tokens: int) -> dict[str, Tensor]:
        units.backbone.eval()
        return {"gradients": gate_gradients(units, self.sample(units.backbone, tokens)).float()}

    def dead(self, model: Backbone, arm: Arm) -> dict[Kind, Tensor]:
        """(L, N) of each kind of which something goes."""
        return {kind: self._dead(model, kind, share, arm) for kind, share in arm.cut.shares.items() if share}

    def _dead(self, model: Backbone, kind: Kind, share: float, arm: Arm) -> Tensor:
        units, scores = units_of(model, kind), self.scores(model, kind, arm)
        n = dead_after(share, units.mask.numel(), 1, 1)
        if kind == "neurons":
            return choose_widths(scores, units.mask, n)
        return as_mask(choose(scores, units.mask, n), units.shape)


def _fast(model: Backbone) -> Any:
    """Its loss of a batch, in `fast_precision`."""
    loss = loss_of(model)

    def fast(batch: Batch) -> Tensor:
        with fast_precision():
            return loss(batch)

    return fast


def run_job(job: Job) -> None:
    if job.key in {(record["arm"], record["seed"]) for record in store.records(job.folder)}:
        return
    torch.set_num_threads(1)
    tune_allocator()
    subject, arm = Subject(job), job.arm
    if arm is None:
        found = {"levels": times(subject)}
    else:
        found = trained(subject, arm) if arm.trained else masked(subject, arm)
    store.append(job.folder, {"arm": job.key[0], "seed": job.seed, **found})
    print(f"{job.key[0]}, seed {job.seed}: done", flush=True)


def masked(subject: Subject, arm: Arm) -> dict[str, Any]:
    """What it costs before any training."""
    model = subject.whole(freeze=True).eval()
    for kind, dead in subject.dead(model, arm).items():
        units_of(model, kind).set_mask(~dead)
    return subject.nats(model)


def trained(subject: Subject, arm: Arm) -> dict[str, Any]:
    """Cut and trained with LoRA; importance is that of the model without adapters."""
    plan, seed = subject.plan, subject.job.seed
    dead = subject.dead(subject.whole(freeze=True).eval(), arm)
    torch.manual_seed(seed)
    model = subject.whole(lora=LoRA(**plan.lora))
    for kind, units in dead.items():
        units_of(model, kind).remove(units, keep=False)
    by = taught_by(teacher_of(subject)) if arm.taught else plain
    watch = store.Stopwatch()
    with watch:
        losses = train(model, subject.texts[0], plan.training, seed, by=by)
    name = "fine-tuning with LoRA" + ("" if arm.cut == Cut() else f": {arm.name}")
    rounded = [round(loss, 4) for loss in losses]
    store.append(subject.folder, {"name": "SmolLM2", "kind": name, "seed": seed, "losses": rounded}, LOSSES)
    left = {kind: int(units_of(model, kind).mask.sum()) for kind in ("heads", "neurons")}
    parameters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" not in name)
    return {**subject.nats(model.eval()), **left, "parameters": parameters, "training_seconds": watch.seconds}


def teacher_of(subject: Subject) -> PretrainedLM:
    """The unpruned model as it was, in the fastest precision."""
    return subject.whole(freeze=True, dtype="bfloat16" if has_fast_bf16() else "float32").eval()


def train(model: Backbone, tokens: TokenArray, options: Training, seed: int, *, by: Loss) -> list[float]:
    """Returns: nats per token of each step, of the next tokens alone."""
    optimizer = new_optimizer(model, options)
    schedule = WarmupCosine(optimizer, warmup_steps=options.warmup_steps, total_steps=options.steps)
    batches, losses = training_batches(tokens, options, seed), []
    model.train()
    for _ in range(options.steps):
        losses.append(backward(model, next(batches), by))
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], options.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return losses


def times(subject: Subject) -> dict[str, dict[str, float]]:
    """By cut: how much faster a forward of a window is, and how much faster FLOPs allow it to be."""
    plan, found = subject.plan, {}
    whole = subject.whole().eval()  # not frozen: FLOPs of frozen matrices are counted otherwise
    for cut in plan.timed:
        model = subject.whole().eval()
        for kind, dead in subject.dead(model, Arm(cut, MAGNITUDE)).items():  # which ones go does not matter here
            units_of(model, kind).remove(dead, keep=False)
        faster = speedup(whole, model, plan.block, rows=1, rounds=plan.rounds)
        allowed = whole.flops_per_token(plan.block) / model.flops_per_token(plan.block)
        found[cut.name] = {"speedup": faster, "ceiling": allowed}
    return found


def jobs_of(plan: Plan, folder: Path) -> list[Job]:
    first = [Job(plan, folder, plan.seeds[0], arm) for arm in untrained_arms(plan)]
    every = [Job(plan, folder, seed, arm) for arm in (*amounts_of(plan), *trained_arms(plan)) for seed in plan.seeds]
    return [*first, *every, Job(plan, folder, plan.seeds[0], None)]


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.plasticity_smollm2", description=__doc__)
    add_texts(parser)
    parser.add_argument("--quick", action="store_true", help="in small: one seed, a few steps")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread and 3 GB each")
    parser.add_argument("--model", default="models/smollm2", help="a directory of Hugging Face's")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_plasticity_smollm2"), help="of the results")
    parser.add_argument("--out", default=None, help="folder of the page; docs, or with --quick WORK")
    plans.add_allowance(parser)
    return take_texts(parser.parse_args(words))


def main(words: Sequence[str] | None = None) -> None:
    options = parsed(words)
    if not Path(options.model).is_dir():
        print(f"{options.model} is missing, so the part on a pretrained model is left out: `make smollm2` brings it")
        return
    plan = Plan(options.model, options.train, options.heldout, options.test)
    plan = quick(plan) if options.quick else plan
    folder = Path(options.work) / plan.fingerprint
    plans.begin_as(options, folder, plan.rules)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    store.do_all(run_job, jobs_of(plan, folder), workers=options.workers, folder=folder)
    out = Path(options.out) if options.out else folder if options.quick else ROOT / "docs"
    print(
        plasticity_smollm2_page.write(folder, asdict(plan), out, command=command_of("experiment-plasticity", options))
    )


if __name__ == "__main__":
    called(main)
