"""The pointer on a frozen model: a cache whose metric and bias by age are learned on the documents that are stored.

The model has never seen these. A document is a block, of which each token reads what came before. Shapes: n tokens of a
document, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from experiments.newer_states import Columns, Read
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.readers.gate import LEAST, MOST
from lightning_app.memory.readers.pointer import PointerReader

SIGNS = 3  # of a gate, by `PointerReader.weighed`


@dataclass(frozen=True)
class Options:
    """How it is taught.

    Attributes:
        rates: of AdamW, tried one by one.
        epochs: over the documents, in an order that depends on the seed.
    """

    rates: tuple[float, ...] = (1e-4, 1e-3)
    epochs: int = 3
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Start:
    """As the cache that is best on the documents to choose on: its weight and temperature."""

    lam: float
    temperature: float


class Pointer(nn.Module):
    """A `PointerReader`, and a gate over what is kept of the model's prediction.

    The reader's own gate asks for the probabilities of all tokens, which are not kept.
    """

    def __init__(self, width: int, vocab_size: int, start: Start):
        super().__init__()
        lam = min(max(start.lam, LEAST), MOST)
        self.reader = PointerReader(lam=lam, theta=1 / start.temperature, memory_size=1)
        self.reader.build(width=width, vocab_size=vocab_size)
        self.gate = nn.Linear(1 + SIGNS, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, float(torch.tensor(lam).logit()))

    def forward(self, read: Read, document: int) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) probability of each token by what came before, (n, SIGNS), and (n,) nats of its mixture with the model.

        Where nothing came before the probability is the model's own.
        """
        rows = read.of(document)
        targets, p_model = read.targets[rows], read.p[rows].float()
        found, match = self.reader.weighed(read.states[None, rows], _context(read, document))
        own = (found.weights * (found.entries.tokens == targets[:, None])).sum(-1)[0]
        p = own.where(found.found.any(-1)[0], p_model)
        g = self.gate(torch.cat([read.entropies[rows, None], match[0].detach()], dim=-1))[:, 0].sigmoid()
        g = g.clamp(LEAST, MOST)
        return p, match[0], -(g * p + (1 - g) * p_model).log()


def _context(read: Read, document: int) -> TokenContext:
    targets, positions = (column[None, read.of(document)] for column in (read.targets, read.positions))
    return TokenContext.of(
        ids=targets,
        next_ids=targets,
        documents=torch.full_like(targets, document),
        positions=positions,
        new=torch.ones_like(targets, dtype=torch.bool),
        rows=torch.zeros(1, dtype=torch.int64),
        segments=torch.zeros(targets.shape[1], dtype=torch.int64),
    )


def taught(
    read: Read, *, on: Sequence[int], chosen_on: Sequence[int], start: Start, options: Options, seed: int
) -> Pointer:
    """In the state that is best on the documents to choose on: that of the start, or after some epoch at some rate."""
    first = Pointer(read.states.shape[1], int(read.targets.max()) + 1, start)
    best = (_nats(first, read, chosen_on), copy.deepcopy(first.state_dict()))
    for rate in options.rates:
        pointer, order = copy.deepcopy(first), np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(pointer.parameters(), lr=rate, weight_decay=options.weight_decay, fused=True)
        for _ in range(options.epochs):
            for document in order.permutation(list(on)):
                pointer(read, int(document))[2].mean().backward()
                nn.utils.clip_grad_norm_(pointer.parameters(), options.clip)
                optimizer.step()
                optimizer.zero_grad()
            if (nats := _nats(pointer, read, chosen_on)) < best[0]:
                best = nats, copy.deepcopy(pointer.state_dict())
    first.load_state_dict(best[1])
    return first


@torch.no_grad()
def _nats(pointer: Pointer, read: Read, documents: Sequence[int]) -> float:
    return float(torch.cat([pointer(read, i)[2] for i in documents]).mean())


@torch.no_grad()
def says(pointer: Pointer, read: Read, documents: Sequence[int]) -> Columns:
    """`p` and `signs` of the tokens of these documents."""
    p, match = zip(*(cast(Pointer, pointer.eval())(read, i)[:2] for i in documents), strict=True)
    return {"p": torch.cat(p).double(), "signs": torch.cat(match).double()}
