"""What a memory should keep under a hard budget: the latest, any, what surprised, or what a score has learned to want.

The states of a trained model are read once. Its cache then reads of each document the entries with the highest
priority, so many as the budget allows, and beside them what its own block has seen before. A priority does not change
once an entry is written, so what an `AssociativeMemory` that evicts the lowest keeps is what is best so far (a test
holds that). Shapes: N tokens, T of a block, M that it may read, D width, G thetas, R rules and budgets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from experiments.runs import Scores
from experiments.statistics import bits_per_byte
from experiments.texts import Texts
from lightning_app.data.batch import Batch
from lightning_app.memory.knn import mixture_weights
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.writer import straight_through
from lightning_app.models.losses import token_nll

RULES = ("recency", "random", "surprise", "learned")
OF_ATTENTION = {"recency": "oldest", "learned": "lowest_score"}  # as a memory calls them
BLOCKS = 4  # of a step of teaching the score


ARM = "storing"  # of a job, which leaves all of `Options.arms`


@dataclass(frozen=True)
class Options:
    """Of what is asked about storing.

    Attributes:
        budgets: entries of a document.
        thetas: of the cache, tried on the text to choose on, each times 1 / D.
        decays: of surprise, tried there: nats that an entry's surprise falls by with each token after it.
        steps: of teaching the learned score of each budget on that text, each of them on one block.
        theta, lam: of the cache that it is taught by.
        of_attention: budgets that the arm `attention` is read under, by its own score and by recency.
    """

    budgets: tuple[int, ...] = (64, 256, 1024, 2000)
    thetas: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    decays: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
    steps: int = 200
    lr: float = 1e-3
    theta: float = 8.0
    lam: float = 0.2
    of_attention: tuple[int, ...] = (64, 256)
    seed: int = 0

    @property
    def arms_of_attention(self) -> tuple[str, ...]:
        return tuple(arm(rule, size, "attention ") for size in self.of_attention for rule in OF_ATTENTION)

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm(rule, size) for size in self.budgets for rule in RULES)


def arm(rule: str, size: int, reader: str = "") -> str:
    return f"{reader}{rule}, {size}"


# What the model says of a text


@dataclass(frozen=True)
class Text:
    """The scored tokens of a text, in order: what the model knew before each, and what it was.

    Attributes:
        states: (N, D).
        nats, targets: (N,).
        documents: (N,) where each token's document begins.
        blocks: (N,) where its block begins, or its document within the block.
    """

    states: Tensor
    nats: Tensor
    targets: Tensor
    documents: Tensor
    blocks: Tensor

    @property
    def model(self) -> Tensor:
        """(N,) the model's probability of each."""
        return self.nats.double().neg().exp()

    @property
    def ages(self) -> Tensor:
        """(N,) position within the document."""
        return torch.arange(len(self.nats)) - self.documents

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """Where the document, the block and the tokens behind the block begin, of each block of each document."""
        starts = self.blocks.unique().tolist()
        for start, end in zip(starts, [*starts[1:], len(self.nats)], strict=True):
            yield int(self.documents[start]), start, end


@torch.no_grad()
def read_once(plain: MemoryLM, batches: Sequence[Batch]) -> Text:
    states, nats, blocks = [], [], []
    for i, batch in enumerate(batches):
        real = batch.targets >= 0
        found = plain.backbone.states(batch.input_ids).last.float()
        states.append(found[real])
        nats.append(token_nll(plain.backbone.logits(found), batch.targets)[real])
        blocks.append(torch.full((int(real.sum()),), i))
    documents = torch.cat([batch.document_ids[batch.targets >= 0] for batch in batches])
    block = torch.cat(blocks)
    return Text(
        torch.cat(states),
        torch.cat(nats),
        torch.cat([batch.targets[batch.targets >= 0] for batch in batches]),
        _first_of(documents),
        torch.maximum(_first_of(documents), _first_of(block)),
    )


def _first_of(runs: Tensor) -> Tensor:
    """(N,) numbers in runs -> (N,) where each one's run begins."""
    begins = torch.cat([torch.ones(1, dtype=torch.bool), runs.diff() != 0])
    return torch.arange(len(runs)).where(begins, 0).cummax(0).values


# The cache under a budget


def ruled(text: Text, options: Options) -> dict[str, Tensor]:
    """(N,) priority of each entry by each rule; surprise has several, of which one is to be chosen."""
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.rand(len(text.nats), generator=generator, dtype=torch.float64)
    surprise = {f"surprise {decay:g}": text.nats.double() + decay * text.ages for decay in options.decays}
    return {"recency": text.ages.double(), "random": drawn, **surprise}


@torch.no_grad()
def read_under(text: Text, by: Mapping[tuple[str, int], Tensor], thetas: Sequence[float]) -> Tensor:
    """(N, R, G) the cache's probability of each target, -1 where it is empty.

    Args:
        by: (N,) priorities and the budget, R of them.
    """
    sizes = [size for _, size in by]
    ranked = torch.stack(list(by.values()))  # (R, N)
    return torch.cat([_of_part(text, part, ranked, sizes, thetas) for part in text.parts()])


def _of_part(
    text: Text, part: tuple[int, int, int], ranked: Tensor, sizes: Sequence[int], thetas: Sequence[float]
) -> Tensor:
    """(T, R, G) of a block."""
    first, start, end = part
    dots = text.states[start:end] @ text.states[first:end].T / text.states.shape[1]  # (T, M)
    own = torch.ones(end - start, end - start).tril(-1)
    hit = text.targets[first:end] == text.targets[start:end, None]
    kept = torch.stack([best(row[first:start], size) for row, size in zip(ranked, sizes, strict=True)], dim=1).float()
    n = start - first
    found = []
    for theta in thetas:
        near = (theta * (dots - dots.amax(-1, keepdim=True))).exp()
        total, right = (x[:, :n] @ kept + (x[:, n:] * own).sum(-1, keepdim=True) for x in (near, near * hit))  # (T, R)
        found.append(torch.where(total > 0, right / total, -1.0))
    return torch.stack(found, dim=-1)


def best(priority: Tensor, size: int) -> Tensor:
    """(M,) bool: the `size` highest; of equal ones the later."""
    if len(priority) <= size:
        return torch.ones(len(priority), dtype=torch.bool)
    kept = torch.zeros(len(priority), dtype=torch.bool)
    kept[priority.argsort(stable=True)[-size:]] = True
    return kept


# A score that is taught


class Score(nn.Module):
    """How much an entry is worth to a cache, from its state, the nats of its next token, and how late it is.

    At first it is surprise that falls with age; the state says what to add to that.
    """

    def __init__(self, width: int, decay: float):
        super().__init__()
        self.of_state = nn.Linear(width, 1)
        nn.init.zeros_(self.of_state.weight)
        nn.init.zeros_(self.of_state.bias)
        self.of_nats = nn.Parameter(torch.ones(()))
        self.log_decay = nn.Parameter(torch.tensor(decay).clamp_min(1e-6).log())  # of a score in a token

    def forward(self, states: Tensor, nats: Tensor, ages: Tensor) -> Tensor:
        """(M, D), (M,) and (M,) -> (M,)."""
        worth: Tensor = self.of_state(states)[:, 0]
        return worth + self.of_nats * nats + self.log_decay.exp() * ages

    def of(self, text: Text) -> Tensor:
        """(N,)"""
        return self(text.states, text.nats, text.ages).double()


def taught(text: Text, size: int, decay: float, options: Options) -> Score:
    """By the cross-entropy of the mixture with the cache. In each step a block reads the best `size` entries of what
    came before it; what is kept has the gradient of its probability (straight-through)."""
    torch.manual_seed(options.seed)
    generator = np.random.default_rng(options.seed)
    score = Score(text.states.shape[1], decay)
    optimizer = torch.optim.AdamW(score.parameters(), lr=options.lr, weight_decay=0.1)
    parts = [part for part in text.parts() if part[1] - part[0] > size]  # something has to go
    for _ in range(options.steps if parts else 0):
        optimizer.zero_grad()
        for i in generator.integers(len(parts), size=BLOCKS):
            (_loss(score, text, parts[i], size, options) / BLOCKS).backward()
        optimizer.step()
    return score.eval().requires_grad_(False)


def _loss(score: Score, text: Text, part: tuple[int, int, int], size: int, options: Options) -> Tensor:
    """Mean nats of a block under a budget."""
    first, start, end = part
    before = slice(first, start)
    scores = score(text.states[before], text.nats[before], text.ages[before])
    kept = best(scores.detach(), size)
    limit = scores.detach()[kept].min()
    weights = straight_through((scores - limit).sigmoid(), kept)
    dots = text.states[start:end] @ text.states[first:end].T / text.states.shape[1]
    near = (options.theta * (dots - dots.amax(-1, keepdim=True))).exp()
    own = torch.ones(end - start, end - start).tril(-1)
    hit = text.targets[first:end] == text.targets[start:end, None]
    n = start - first
    total, right = (x[:, :n] @ weights + (x[:, n:] * own).sum(-1) for x in (near, near * hit))
    p = options.lam * right / total + (1 - options.lam) * (-text.nats[start:end]).exp()
    return -p.clamp_min(1e-9).log().mean()


# Arms


@dataclass(frozen=True)
class Chosen:
    """What the text to choose on has chosen for an arm.

    Attributes:
        rule: with surprise's decay.
        theta: number of it.
    """

    nats: float
    lam: float
    theta: int
    rule: str

    @property
    def decay(self) -> float:
        return float(self.rule.split()[1])


def run(
    plain: MemoryLM, texts: Texts, tuning: list[Batch], test: list[Batch], options: Options
) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """Arm, record and nats (N,): rule by rule under each budget, of the same model."""
    tuned, scored = read_once(plain, tuning), read_once(plain, test)
    chosen = choose(tuned, ruled(tuned, options), options)
    start = time.process_time()
    decays = {size: chosen[arm("surprise", size)].decay for size in options.budgets}
    scores = {size: taught(tuned, size, decays[size], options) for size in options.budgets}
    seconds = time.process_time() - start
    for size, score in scores.items():
        chosen |= choose(tuned, {"learned": score.of(tuned)}, replace(options, budgets=(size,)))
    by_rule = ruled(scored, options)
    by = {
        (arm(rule, size), size): scores[size].of(scored) if rule == "learned" else by_rule[chosen[arm(rule, size)].rule]
        for size in options.budgets
        for rule in RULES
    }
    p = read_under(scored, by, options.thetas)
    n_bytes = Scores.of(test, [torch.zeros(batch.targets.shape) for batch in test]).n_bytes(
        texts.test, texts.token_bytes
    )
    for i, (name, size) in enumerate(by):
        one = chosen[name]
        nats = -mixed(scored.model, p[:, i, one.theta].double(), one.lam).log().numpy()
        learned = {"decay": float(scores[size].log_decay.exp()), "train_seconds_of_scores": seconds}
        record = {
            "tuning_nats": one.nats,
            "weights": [1 - one.lam, one.lam],
            "theta": options.thetas[one.theta],
            "rule": one.rule,
            "test_bpb": bits_per_byte(nats, n_bytes),
            **(learned if one.rule == "learned" else {}),
        }
        yield name, record, nats


def choose(text: Text, priorities: Mapping[str, Tensor], options: Options) -> dict[str, Chosen]:
    """Theta and weight of each arm, and of surprise the decay, on this text."""
    by = {(rule, size): priority for size in options.budgets for rule, priority in priorities.items()}
    p = read_under(text, by, options.thetas).double()
    found: dict[str, Chosen] = {}
    for i, (rule, size) in enumerate(by):
        name = arm(rule.split()[0], size)
        for theta in range(len(options.thetas)):
            nats, lam = _weighed(text.model, p[:, i, theta])
            if name not in found or nats < found[name].nats:
                found[name] = Chosen(nats, lam, theta, rule)
    return found


def mixed(p: Tensor, cache: Tensor, lam: float) -> Tensor:
    """(N,) probabilities, the cache's -1 where it is empty."""
    return torch.where(cache < 0, p, lam * cache + (1 - lam) * p)


def _weighed(p: Tensor, cache: Tensor) -> tuple[float, float]:
    """Mean nats with the best weight of the cache, and that weight."""
    lam = float(mixture_weights(torch.stack([p, torch.where(cache < 0, p, cache)], dim=1), steps=50)[1])
    return float(-mixed(p, cache, lam).log().mean()), lam


# AttentionReader under a budget


def under(model: MemoryLM, size: int, rule: str) -> MemoryLM:
    """The same model, whose reader keeps so many entries of each document by this rule."""
    (reader,) = model.readers
    changed = {
        "advanced": replace(reader.advanced, eviction=OF_ATTENTION[rule]),
        "memory_size": size,
        "num_search_results": min(size, reader.bank.shared.num_search_results),
        "scope": "document",
        "streams": 1,
    }
    part = MemoryLM(
        model.backbone, [AttentionReader(**reader.config() | changed)], model.segment_length, model.isolate_segments
    )
    learned = {name: x for name, x in reader.state_dict().items() if not name.startswith("bank.")}
    part.readers[0].load_state_dict(learned, strict=False)
    return cast(MemoryLM, part.eval())
