"""Recall of a key's value beyond the context, with writes that the model has learned and hard decisions.

A segment of 4 tokens sees no other; each of its two slots holds a pair (key, value), a question (ASK, key), whose
answer is the value, or noise. So an answer can only come from the memory, which holds at most a tenth of the stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.former import options_of_today
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.readers.concat import ConcatReader
from lightning_app.memory.readers.learned import LearnedReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import IGNORE

KEYS = VALUES = 12
NOISE, ASK, VOCABULARY = KEYS + VALUES, KEYS + VALUES + 8, KEYS + VALUES + 9  # NOISE to ASK - 1 is noise
SLOTS, L = 2, 4  # a segment
PAIRS = 4
CAPACITY = 9
ROWS = 48  # streams of an evaluation


@dataclass
class Streams:
    """Token ids (B, T), targets (B, T), and where the values stand that can be asked for (B, T)."""

    ids: Tensor
    targets: Tensor
    values: Tensor


def streams(
    pair_segments: Tensor, *, segments: int, generator: torch.Generator, keys: int = PAIRS, dense: bool = False
) -> Streams:
    """Pair i stands in segment `pair_segments[:, i]` (B, n), ascending; the last two segments ask for all keys.

    Args:
        keys: how many there are in a stream; with more pairs than that, the later ones bind earlier keys again.
        dense: the other slot of a pair's segment asks for a key that was bound before.
    """
    B, n = pair_segments.shape
    b = torch.arange(B)
    ids = torch.randint(NOISE, ASK, (B, segments, SLOTS, 2), generator=generator)
    targets = torch.full_like(ids, IGNORE)
    is_value = torch.zeros_like(ids, dtype=torch.bool)
    slots = torch.rand(B, segments, SLOTS, generator=generator).argsort(-1)
    names = torch.rand(B, KEYS, generator=generator).argsort(-1)[:, :keys]
    values = torch.zeros(B, keys, dtype=torch.int64)  # the latest

    def ask(segment: Tensor, slot: Tensor, key: Tensor) -> None:
        ids[b, segment, slot] = torch.stack([torch.full((B,), ASK), names[b, key]], dim=-1)
        targets[b, segment, slot, 1] = values[b, key]

    for i in range(n):
        segment = pair_segments[:, i]
        slot = slots[b, segment]
        if dense and i:
            ask(segment, slot[:, 1], torch.randint(0, min(i, keys), (B,), generator=generator))
        key = torch.full((B,), i) if i < keys else torch.randint(0, keys, (B,), generator=generator)
        values[b, key] = KEYS + torch.randint(0, VALUES, (B,), generator=generator)
        ids[b, segment, slot[:, 0]] = torch.stack([names[b, key], values[b, key]], dim=-1)
        is_value[b, segment, slot[:, 0], 1] = True
    order = torch.rand(B, keys, generator=generator).argsort(-1)
    for q in range(keys):
        segment = torch.full((B,), segments - 2 + q % 2)
        ask(segment, slots[b, segment, q // 2], order[:, q])
    return Streams(ids.view(B, -1), targets.view(B, -1), is_value.view(B, -1))


def spread(rows: int, n: int, *, over: int, generator: torch.Generator) -> Tensor:
    """(rows, n) ascending numbers of segments."""
    return torch.rand(rows, over, generator=generator).argsort(-1)[:, :n].sort(-1).values


def context(ids: Tensor, *, start: int = 0) -> TokenContext:
    T = ids.shape[1]
    return replace(TokenContext.of_session(ids, start=start, new=T), segments=torch.arange(T) // L)


def recaller(seed: int, kind: type[LearnedReader] = AttentionReader, **options: Any) -> MemoryLM:
    torch.manual_seed(seed)
    decoder = Decoder(vocab_size=VOCABULARY, block_size=L, embedding_dim=48, layers=1, heads=4)
    memory = {"memory_size": CAPACITY, "num_search_results": 4, "forgetfulness_factor": 0.0, **options}
    memory = options_of_today(memory, "AttentionReader")
    reader = kind(scope="stream", streams=ROWS, writes="evaluation", **memory)
    return MemoryLM(decoder, [reader], segment_length=L)


def train(model: MemoryLM, batches: list[Streams], *, lr: float = 3e-3) -> None:
    (reader,) = model.readers
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * i / len(batches)))
    )
    model.train()
    for batch in batches:
        found = model.run(batch.ids, context(batch.ids))
        ce = F.cross_entropy(found.logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        loss = ce + sum(weight * term for weight, term in found.reader_outputs[0].terms.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        reader.follow_step(found.reader_outputs[0].distances)
    model.eval()


@dataclass
class Recall:
    """Share of right answers; store probability at values and elsewhere; share of the tokens that were stored."""

    accuracy: float
    at_values: float
    elsewhere: float
    rate: float


@torch.no_grad()
def recall(model: MemoryLM, batch: Streams, *, write: str = "learned", rate: float = 0.0) -> Recall:
    """Read streams (ROWS, T) segment by segment, as the `write` says: learned, at random at a rate, or nothing."""
    (reader,) = model.readers
    assert isinstance(reader, LearnedReader)
    generator = torch.Generator().manual_seed(0)
    right, probabilities = [], []
    reader.bank.begin_evaluation()
    for start in range(0, batch.ids.shape[1], L):
        now = slice(start, start + L)
        part = replace(context(batch.ids[:, now], start=start), segments=torch.zeros(L, dtype=torch.int64))
        found = model.run(batch.ids[:, now], part)
        right.append(found.logits.argmax(-1) == batch.targets[:, now])
        decisions = reader.writer(found.before)
        probabilities.append(decisions.store)
        update = found.reader_outputs[0].update
        assert update is not None
        if write == "at random":
            update = part.update_of(decisions.vectors, torch.rand(ROWS, L, generator=generator) < rate)
        if write != "nothing":
            reader.bank.write(update, training=False)
    assert max(memory.size() for memory in reader.bank.active) <= CAPACITY <= batch.ids.shape[1] / 10
    reader.bank.end_evaluation()
    p = torch.cat(probabilities, dim=1)
    return Recall(
        torch.cat(right, dim=1)[batch.targets != IGNORE].float().mean().item(),
        p[batch.values].mean().item(),
        p[~batch.values].mean().item(),
        (p > 0.5).float().mean().item(),
    )


def streams_of(name: str, seed: int) -> Streams:
    """96 tokens: the pairs spread among noise, or a block of noise between pairs and questions."""
    generator = torch.Generator().manual_seed(1000 + seed)
    first = torch.arange(PAIRS).expand(ROWS, PAIRS)
    where = spread(ROWS, PAIRS, over=22, generator=generator) if name == "spread" else first
    return streams(where, segments=24, generator=generator)


PRICE = {"store_free_steps": 200, "store_rise_steps": 50, "store_cost": 0.05}
BUDGET = {"store_cost": None, "advanced": {"eviction": "lowest_score", "fading": 0.0, "store_free_steps": 150}}


def trained(seed: int, kind: type[LearnedReader] = AttentionReader, *, steps: int = 250, **options: Any) -> MemoryLM:
    """By short streams, with questions everywhere."""
    model = recaller(seed, kind, deletion=False, **options)
    generator = torch.Generator().manual_seed(seed)
    where = torch.arange(PAIRS).expand(48, PAIRS)
    train(model, [streams(where, segments=PAIRS + 2, generator=generator, dense=True) for _ in range(steps)])
    return model


each_seed = pytest.mark.parametrize("seed", [0, 1, 2])


@pytest.mark.slow  # in small, bit for bit: varda_gpt of tests/golden
@each_seed
def test_values_are_recalled_beyond_the_context_and_little_else_is_stored(seed: int):
    """Storing as much at random is worse, and storing nothing is guessing."""
    model = trained(seed, **PRICE)
    for name in ("behind noise", "spread"):
        batch = streams_of(name, seed)
        found = recall(model, batch)
        assert found.accuracy > 0.95, name
        assert found.at_values > 0.8, name
        assert found.elsewhere < 0.1, name
    assert recall(model, batch, write="at random", rate=found.rate).accuracy < 0.65
    assert recall(model, batch, write="nothing").accuracy < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AttentionReader, ConcatReader])
def test_with_a_hard_budget_the_score_keeps_what_will_be_asked_for(kind: type[LearnedReader]):
    """Nine entries of 96, without a price: cross-entropy alone taught which. The latest nine, or any, are no help."""
    model = trained(0, kind, steps=400, **BUDGET)
    (reader,) = model.readers
    for name in ("behind noise", "spread"):
        assert recall(model, streams_of(name, 0)).accuracy > 0.9, name
        assert recall(model, streams_of(name, 0), write="nothing").accuracy < 0.2
    for rule in ("oldest", "random"):
        (memory,) = {memory.options for memory in reader.bank.memories}
        for one in reader.bank.memories:
            one.options = replace(memory, eviction=rule)
        assert recall(model, streams_of("spread", 0)).accuracy < 0.5, rule
        for one in reader.bank.memories:
            one.options = memory


def rebound(seed: int, *, deletion: bool) -> float:
    """Accuracy where keys get new values: 8 pairs of 4 keys in 96 tokens; deletions are soft first, hard later."""
    options = {"num_search_results": 8, "deletion": deletion, "hard_deletion_after": 500}
    model = recaller(seed, store_free_steps=200, store_rise_steps=100, store_cost=0.05, **options)
    generator = torch.Generator().manual_seed(seed)

    def batch(pairs: int, segments: int, rows: int = 32) -> Streams:
        where = spread(rows, pairs, over=segments - 2, generator=generator)
        return streams(where, segments=segments, generator=generator, dense=True)

    batches = [batch(PAIRS, PAIRS + 2) for _ in range(250)]  # first to read
    batches += [batch(2 * PAIRS, 2 * PAIRS + 2) for _ in range(150)]
    train(model, batches + [batch(2 * PAIRS, 24) for _ in range(300)])  # gaps as long as those tested
    where = spread(ROWS, 2 * PAIRS, over=22, generator=generator)
    return recall(model, streams(where, segments=24, generator=generator)).accuracy


@pytest.mark.slow
def test_the_latest_value_of_a_key_is_recalled():
    """Seeds differ much, and from one machine to another: one of four learns no deletion (docs/log.md)."""
    pairs = [(rebound(seed, deletion=True), rebound(seed, deletion=False)) for seed in (0, 1, 2)]
    with_deletion, without = (sum(found) / len(pairs) for found in zip(*pairs, strict=True))
    assert with_deletion >= 0.85, pairs
    assert with_deletion >= without + 0.2, pairs
