"""Arms with a gate that is learned on text kept from the model: the pointer; and counts, cache and pointer mixed.

The model stays as it is, and what is learned begins as what was tuned. Shapes: B streams, T positions, N tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from experiments.runs import Training, context_of, new_optimizer, read, seconds_per_token, write
from experiments.statistics import bits_per_byte
from experiments.store import Stopwatch
from experiments.texts import Texts
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import CacheReader, GatedMixture, NGramReader, PointerReader
from lightning_app.memory.readers.base import Reader
from lightning_app.peers import token_ids

ARMS = POINTER, MIXTURE = ("pointer", "mixture")
ORDER = 5  # of the n-grams
Result = tuple[str, dict[str, Any], np.ndarray]  # arm, record and nats (N,)


@dataclass(frozen=True)
class Options:
    """How they are taught.

    Attributes:
        streams: B, each a part of the text in its order.
        epochs: over it.
        blocks: of it, at most; None: all.
        looks: how often, evenly spread, the best state so far is looked for on the blocks to choose on.
        hidden: width of each gate's network.
    """

    streams: int = 4
    epochs: int = 2
    blocks: int | None = None
    looks: int = 4
    lr: float = 1e-2
    warmup_steps: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    hidden: int = 32


@dataclass(frozen=True)
class Start:
    """What was tuned before.

    Attributes:
        cache_size: states.
        lam, theta: of the cache alone.
        weights: of model, counts and cache together.
        cache_theta: the cache's there.
        counts_bytes: of the counts.
    """

    cache_size: int
    lam: float
    theta: float
    weights: Sequence[float]
    cache_theta: float
    counts_bytes: int

    def pointer(self, options: Options) -> PointerReader:
        return PointerReader(
            lam=min(max(self.lam, 0.01), 0.99), theta=self.theta, hidden=options.hidden, **self._all(options)
        )

    def all(self, options: Options, texts: Texts) -> list[Reader]:
        """Counts, cache and pointer, and what mixes them."""
        of_model, of_counts, of_cache = self.weights
        lam = of_counts / max(of_counts + of_model, 1e-12)
        counts = NGramReader(order=ORDER, lam=lam)
        cache = CacheReader(lam=of_cache, theta=self.cache_theta, **self._all(options))
        return [counts, cache, self.pointer(options), GatedMixture(hidden=options.hidden)]

    def _all(self, options: Options) -> dict[str, Any]:
        return {
            "memory_size": self.cache_size,
            "streams": options.streams,
            "writes": "always",
            "forgetfulness_factor": 0.0,
        }


def run(
    plain: MemoryLM, texts: Texts, tuning: list[Batch], test: list[Batch], start: Start, options: Options, *, seed: int
) -> Iterator[Result]:
    """Teach, test."""
    torch.manual_seed(seed)
    pointer = start.pointer(options)
    model = MemoryLM(plain.backbone, [pointer], freeze=True)
    facts = teach(model, texts.val, tuning, options)
    yield _tested(POINTER, model, texts, test, facts, more_bytes=0)
    readers = start.all(options, texts)
    model = MemoryLM(plain.backbone, readers, freeze=True)
    cast(NGramReader, readers[0]).bank.hold(token_ids(texts.train))
    readers[2].load_state_dict(pointer.state_dict())
    facts = teach(model, texts.val, tuning, options)
    yield _tested(MIXTURE, model, texts, test, facts, more_bytes=start.counts_bytes)


def teach(model: MemoryLM, text: TokenArray, tuning: list[Batch], options: Options) -> dict[str, float]:
    """Teach the readers on what lies behind the blocks to choose on, and leave them as they were best on these."""
    learner = nn.ModuleList(model.readers)
    training = Training(lr=options.lr, weight_decay=options.weight_decay)
    optimizer, watch = new_optimizer(learner, training), Stopwatch()
    steps = options.epochs * sum(1 for _ in streams(text, tuning, options))
    best = (float(read(at_rest(model), tuning).nats.mean()), 0, copy.deepcopy(learner.state_dict()))
    for step, batch in enumerate(_epochs(model, text, tuning, options), start=1):
        with watch:
            _step(model, batch, optimizer, options, rate=_rate(step, steps, options))
        if step % max(1, steps // options.looks) == 0 or step == steps:
            nats = float(read(at_rest(model), tuning).nats.mean())
            print(f"step {step} of {steps}: {nats:.4f} nats to choose by, {watch.seconds:.0f} CPU s", flush=True)
            best = min(best, (nats, step, copy.deepcopy(learner.state_dict())), key=lambda one: one[0])
    learner.load_state_dict(best[2])
    return {"tuning_nats": best[0], "best_step": best[1], "last_step": steps, "train_seconds": watch.seconds}


def streams(text: TokenArray, tuning: list[Batch], options: Options) -> Iterator[Batch]:
    """(B, T) of what lies behind the blocks to choose on, or of the second half where these are more."""
    windows = TokenWindows(text, tuning[0].input_ids.shape[1])
    first = min(len(tuning), len(windows) // 2)
    count = min(len(windows) - first, options.blocks or len(windows)) // options.streams
    if not count:
        raise InputError(f"the text to choose on has {len(windows)} blocks: too few to teach a gate on, give more")
    for i in range(count):
        yield windows.__getitems__([first + row * count + i for row in range(options.streams)])


def _epochs(model: MemoryLM, text: TokenArray, tuning: list[Batch], options: Options) -> Iterator[Batch]:
    for _ in range(options.epochs):
        _empty(model.readers)
        yield from streams(text, tuning, options)
    _empty(model.readers)


def _rate(step: int, steps: int, options: Options) -> float:
    """A warm-up, then a cosine."""
    return options.lr * min(1.0, step / options.warmup_steps) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))


def _step(model: MemoryLM, batch: Batch, optimizer: torch.optim.Optimizer, options: Options, *, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    found = model.train().run(batch.input_ids, context_of(batch))
    terms = [weight * term for output in found.reader_outputs for weight, term in output.terms.values()]
    cast(Tensor, sum(terms)).backward()
    nn.utils.clip_grad_norm_(model.readers.parameters(), options.clip)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    write(model, found, training=True)


def at_rest(model: MemoryLM) -> MemoryLM:
    """The same, with copies of the readers whose memories are empty."""
    part = MemoryLM(model.backbone, [])
    part.readers = cast(Sequence[Reader], nn.ModuleList(copy.deepcopy(list(model.readers))))
    _empty(part.readers)
    return cast(MemoryLM, part.eval())


def _empty(readers: Sequence[Reader]) -> None:
    for reader in readers:
        for memory in reader.bank.memories:
            memory.reset()


def _tested(
    arm: str, model: MemoryLM, texts: Texts, test: list[Batch], facts: dict[str, float], *, more_bytes: int
) -> Result:
    """Its record, and nats (N,)."""
    model = at_rest(model)
    scores = read(model, test)
    memories = [reader.bank.memories[0] for reader in model.readers if reader.bank.memories]
    record = {
        **facts,
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_bytes": more_bytes + sum(x.nbytes for memory in memories for x in memory.buffers()),
        "seconds_per_token": seconds_per_token(model, test[:100]),
        "test_bpb": bits_per_byte(scores.nats, scores.n_bytes(texts.test, texts.token_bytes)),
    }
    return arm, record, scores.nats
