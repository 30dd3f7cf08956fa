"""A small model that is trained, loses heads, and is trained on: texts, training, and what is removed when.

Shapes: L layers, H heads, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import untrained
from experiments.continual import Texts
from experiments.plasticity_plan import STRATEGIES, Arm, Plan
from experiments.runs import fast_precision, new_optimizer, training_batches
from experiments.texts import Texts as Corpus
from experiments.texts import prepare
from lightning_app.data.batch import Batch
from lightning_app.data.windows import TokenWindows
from lightning_app.io import replacing
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import IGNORE, cross_entropy, distillation, token_nll
from lightning_app.plasticity.importance import GradientImportance, Sample, gate_gradients, measured
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.pruning import as_mask, choose, choose_widths, dead_after, most_missed

TAUGHT, TEMPERATURE = 0.5, 2.0  # a and T of (1 - a) CE + a T^2 KL(teacher || student)
ROUNDS = 7  # of timing
Loss = Callable[[Tensor, Batch], Tensor]  # of logits (B, T, V)


class Evidence:
    """What models are trained on, judged by and scored with."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder
        self.corpus: Corpus = prepare(plan.train, plan.heldout, plan.test, vocab_size=plan.vocab_size, folder=folder)

    def test(self) -> Texts:
        """Blocks of the text to score."""
        T, n = self.plan.training.block_size, self.plan.blocks
        return Texts(self.corpus.test, self.corpus.token_bytes, block_size=T, blocks=n)

    def keep_untrained(self) -> None:
        """What counts and a compressor make of the text to score."""
        corpus = self.corpus
        text = untrained.Text([corpus.train], corpus.val, corpus.test)
        untrained.keep(self.folder, {"text to score": text}, corpus.tokenizer)

    def sample(self, model: Backbone, seed: int) -> Sample:
        """Of the text to choose on."""
        windows = TokenWindows(self.corpus.val, self.plan.training.block_size)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()[: self.plan.sample]
        return Sample([windows.__getitems__(order[i : i + 8]) for i in range(0, len(order), 8)], loss_of(model))


def loss_of(model: Backbone) -> Callable[[Batch], Tensor]:
    """(B,) nats per token of each sequence of a batch."""

    def loss(batch: Batch) -> Tensor:
        nll = token_nll(model(batch.input_ids), batch.targets)
        return nll.sum(-1) / (batch.targets != IGNORE).sum(-1).clamp_min(1)

    return loss


def plain(logits: Tensor, batch: Batch) -> Tensor:
    return cross_entropy(logits, batch.targets)


def taught_by(teacher: Backbone) -> Loss:
    """(1 - a) CE + a T^2 KL(teacher || student), see `models.losses.distillation`."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            said = teacher(batch.input_ids)
        from_teacher = distillation(logits, said, batch.targets, temperature=TEMPERATURE)
        return (1 - TAUGHT) * cross_entropy(logits, batch.targets) + TAUGHT * from_teacher

    return loss


# Training


def backward(model: Backbone, batch: Batch, by: Loss) -> float:
    """In `fast_precision`. Returns: the cross-entropy, in nats per token."""
    with fast_precision():
        logits = model(batch.input_ids)
        loss = by(logits, batch)
    loss.backward()
    if by is plain:
        return float(loss.detach())
    with torch.no_grad():
        return float(cross_entropy(logits, batch.targets))


class Run:
    """A model, its optimizer and the number of steps done.

    Attributes:
        finetuning: steps after those of the plan's training.
        losses: nats per token of each step, of the next tokens alone.
    """

    def __init__(self, plan: Plan, evidence: Evidence, seed: int, *, order: int | None = None):
        torch.manual_seed(seed)
        self.plan, self.seed, self.step, self.finetuning = plan, seed, 0, plan.finetuning
        self.model = Decoder(**plan.decoder)
        self.optimizer = new_optimizer(self.model, plan.training)
        order = seed if order is None else order
        self.batches = training_batches(evidence.corpus.train, plan.training, order)
        self.seconds, self.losses = 0.0, list[float]()

    def factor(self) -> float:
        """Of the learning rate: a warm-up, constant, and a cosine once heads may be gone."""
        options, past = self.plan.training, self.step - self.plan.training.steps
        if past < 0:
            return min(1.0, (self.step + 1) / options.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * past / self.finetuning))
        return self.plan.floor + (1 - self.plan.floor) * cosine

    def train(self, steps: int, *, by: Loss = plain) -> None:
        """In `fast_precision`."""
        options = self.plan.training
        self.model.train()
        start = time.process_time()
        for batch in islice(self.batches, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = options.lr * self.factor() * group.get("multiple", 1.0)
            self.losses.append(backward(self.model, batch, by))
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        self.seconds += time.process_time() - start

    def times_longer(self, teacher: Backbone) -> float:
        """CPU seconds of a step with a teacher over those of one without."""
        batch = next(iter(self.batches))
        losses = (plain, taught_by(teacher))
        without, taught = shortest([partial(backward, self.model, batch, by) for by in losses], rounds=ROUNDS)
        self.optimizer.zero_grad()
        return taught / without

    def skip(self, steps: int) -> None:
        """As if so many had been done: their batches are passed over."""
        for _ in islice(self.batches, steps):
            pass
        self.step += steps

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        with replacing(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """What `save` wrote, of a model of which nothing was removed."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skip(state["step"])


# What is removed


def chosen(scores: Tensor, alive: Tensor, n: int) -> Tensor:
    """(L, H) bool: the n that go."""
    return as_mask(choose(scores, alive, n), alive.shape)


def prune(run: Run, arm: Arm, evidence: Evidence, level: float, scores: Tensor | None = None) -> None:
    """Remove the heads that a level asks for, and the arm's neurons; the optimizer's state goes along."""
    heads = units_of(run.model, "heads")
    n = dead_after(level, math.prod(heads.shape), 1, 1) - int((~heads.mask).sum()) + arm.regrow
    sample = evidence.sample(run.model, run.seed)
    run.model.eval()
    if n:
        if scores is None:
            scores = measured(STRATEGIES[arm.strategy], heads, sample, keep=int(heads.mask.sum()) - n)
        heads.remove(chosen(scores, heads.mask, n), run.optimizer)
    if arm.regrow:
        regrow(run, arm.regrow, sample)
    if arm.neurons:
        neurons = units_of(run.model, "neurons")
        goal = dead_after(arm.neurons, math.prod(neurons.shape), 1, 1)
        of_neurons = measured(GradientImportance(), neurons, sample, keep=0)
        neurons.remove(choose_widths(of_neurons, neurons.mask, goal), run.optimizer, keep=False)


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


def spread_evenly(n: int, shape: tuple[int, int]) -> Tensor:
    """(L, H) bool, n True: as many of each layer, up to one."""
    layers, heads = shape
    number = torch.arange(heads)[None] * layers + torch.arange(layers)[:, None]  # (L, H), layer by layer
    return number < n


def remove_evenly(run: Run, level: float) -> None:
    """Before training: the shape of a smaller model."""
    heads = units_of(run.model, "heads")
    heads.remove(spread_evenly(dead_after(level, math.prod(heads.shape), 1, 1), heads.shape), run.optimizer, keep=False)


def remove_all(run: Run) -> None:
    heads = units_of(run.model, "heads")
    heads.remove(torch.ones(heads.shape, dtype=torch.bool), run.optimizer, keep=False)


def risen(level: float, done: int, of: int) -> float:
    """The level after `done` of `of` prunings: level (1 - (1 - t)^3), Zhu and Gupta 2017, arXiv:1710.01878, eq. 1."""
    return level * (1 - (1 - done / of) ** 3)


def train_with_rising_level(run: Run, arm: Arm, evidence: Evidence) -> None:
    """To the end; the last of the prunings reaches the arm's level."""
    steps = run.plan.rising_steps
    for done, step in enumerate(steps, start=1):
        run.train(step - run.step)
        prune(run, arm, evidence, risen(arm.level, done, len(steps)))
    run.train(run.plan.training.steps + run.finetuning - run.step)


def set_rates(run: Run, factor: float) -> None:
    """Learn faster, by a factor, in blocks that lost heads."""
    lost = 1 - units_of(run.model, "heads").mask.float().mean(1)
    fast = {id(p) for i, block in enumerate(run.model.blocks) if lost[i] > 0 for p in block.parameters()}
    groups = run.optimizer.param_groups
    for group in list(groups):
        quick_ones = [p for p in group["params"] if id(p) in fast]
        group["params"] = [p for p in group["params"] if id(p) not in fast]
        options: dict[str, Any] = {key: value for key, value in group.items() if key != "params"}
        groups.append({**options, "params": quick_ones, "multiple": factor})


# What it costs


def size_of(model: Decoder, plan: Plan) -> dict[str, Any]:
    """Parameters, FLOPs and units, beside those of the whole model, and how much faster a forward is."""
    whole, length = Decoder(**plan.decoder).eval(), plan.training.block_size
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_whole": sum(p.numel() for p in whole.parameters()),
        "flops": model.flops_per_token(length),
        "flops_whole": whole.flops_per_token(length),
        "heads": int(units_of(model, "heads").mask.sum()),
        "neurons": int(units_of(model, "neurons").mask.sum()),
        "speedup": speedup(whole, model, length),
    }


@torch.no_grad()
def speedup(whole: Backbone, model: Backbone, length: int, *, rows: int = 8, rounds: int = 15) -> float:
    """CPU time of a forward of the whole model over that of this one, in fp32."""
    ids = torch.zeros(rows, length, dtype=torch.int64)
    of_whole, of_model = shortest([partial(one, ids) for one in (whole, model)], rounds=rounds)
    return of_whole / of_model


def shortest(calls: Sequence[Callable[[], Any]], *, rounds: int) -> list[float]:
    """CPU seconds of each, the least of the rounds, in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for found, call in zip(times, calls, strict=True):
            start = time.process_time()
            call()
            found.append(time.process_time() - start)
    return [min(found) for found in times]
