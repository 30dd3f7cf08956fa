"""What is looked up of each token beside the model's prediction: states of other documents, of its own, and counts.

Everything is searched once among all documents; a split then counts what it has stored. Shapes: N tokens of all
documents, Q of those asked for, K nearest states, G temperatures, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from experiments import baselines
from experiments.newer_states import Columns, Read, kept
from lightning_app.data.token_array import TokenArray
from lightning_app.memory.knn import p_of_target
from lightning_app.models.ngrams import UNKNOWN, context_hashes
from lightning_app.peers import token_ids

NEAREST = 384  # states of other documents that are looked for: a split has stored about three in five of them
OWN = 64  # the same, of what came before in the document
AT_ONCE = 256  # states that are searched for at once
SCALES = tuple(2.0 ** (i / 2) for i in range(-12, 5))  # temperatures tried, times a scale
LAMS = (0.0, *(2.0 ** (i / 2) for i in range(-13, 0)))  # weights tried: 0.011 to 0.71


@dataclass(frozen=True)
class Near:
    """What is near to each token's state.

    Attributes:
        distances, entries: (N, K) squared, and which of the N states; inf where there are fewer.
        own_distances, own_entries: (N, O) of earlier ones of the own document.
        cache: (N, G) probability of the token by all of these, by inner product; -1 where there are none.
        seconds: CPU time of all.
    """

    distances: Tensor
    entries: Tensor
    own_distances: Tensor
    own_entries: Tensor
    cache: Tensor
    seconds: float


def thetas_of(read: Read) -> list[float]:
    """Temperatures of the cache: times the mean square of a state."""
    return [float(read.states.square().sum(-1).mean()) * scale for scale in SCALES]


def near(read: Read, *, storable: Sequence[int], asked: Sequence[int], folder: Path) -> Near:
    """Of documents that are chosen on or scored, among those that can be stored; `folder` has a file for each."""
    may = torch.isin(read.documents, torch.tensor(storable))
    found = [
        kept(folder / f"{i}.pt", partial(_searched if i in asked else _nothing, read, i, may))
        for i in range(len(read.ends))
    ]
    columns = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return Near(**columns | {"seconds": float(columns["seconds"].sum())})  # type: ignore[arg-type]


def _nothing(read: Read, document: int, may: Tensor) -> Columns:
    n = read.of(document).stop - read.of(document).start
    none = torch.full((n, 1), torch.inf)
    at = torch.zeros(n, 1, dtype=torch.int32)
    return _padded({"distances": none, "entries": at, "own_distances": none, "own_entries": at}, len(read.nats)) | {
        "cache": torch.full((n, len(SCALES)), -1.0),
        "seconds": torch.zeros(1),
    }


def _searched(read: Read, document: int, may: Tensor) -> Columns:
    own, start = read.of(document), time.process_time()
    may = may.clone()
    may[own] = False
    squares, parts = read.states.square().sum(-1), []
    for first in range(own.start, own.stop, AT_ONCE):
        rows = slice(first, min(first + AT_ONCE, own.stop))
        inner = read.states[rows] @ read.states.T  # (R, N)
        distances = squares[rows, None] + squares - 2 * inner
        before = torch.arange(own.start, own.stop) < torch.arange(rows.start, rows.stop)[:, None]
        mine = distances[:, own].masked_fill(~before, torch.inf)
        part = _nearest(distances.masked_fill_(~may, torch.inf), NEAREST, ("distances", "entries"))
        part |= _nearest(mine, OWN, ("own_distances", "own_entries"), first=own.start)
        part["cache"] = _cache(read, rows, own, inner[:, own].masked_fill(~before, -torch.inf))
        parts.append(_padded(part, len(read.nats)))
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return columns | {"seconds": torch.tensor([time.process_time() - start])}


def _nearest(distances: Tensor, k: int, names: tuple[str, str], *, first: int = 0) -> Columns:
    values, at = distances.topk(min(k, distances.shape[1]), largest=False)
    return {names[0]: values, names[1]: (at + first).int()}


def _padded(part: Columns, n: int) -> Columns:
    """All documents have as many columns, where there are so many states."""
    for prefix, k in (("", min(NEAREST, n)), ("own_", min(OWN, n))):
        missing = (0, k - part[f"{prefix}distances"].shape[1])
        part[f"{prefix}distances"] = torch.nn.functional.pad(part[f"{prefix}distances"], missing, value=torch.inf)
        part[f"{prefix}entries"] = torch.nn.functional.pad(part[f"{prefix}entries"], missing)
    return part


def _cache(read: Read, rows: slice, own: slice, inner: Tensor) -> Tensor:
    match = read.targets[own] == read.targets[rows, None]
    p = torch.stack([p_of_target(-inner, match, temperature=T) for T in thetas_of(read)], dim=1)
    return p.where(inner.isfinite().any(-1, keepdim=True), -1.0)


def usual_distance(near: Near, rows: Tensor) -> float:
    """Mean distance to what is near."""
    found = near.distances[rows]
    finite = found[found.isfinite()]
    return float(finite.double().mean()) if len(finite) else 1.0


def p_of_cache(near: Near, read: Read, rows: Tensor, number: int) -> Tensor:
    """(Q,) at this temperature; the model's own where there is nothing before it."""
    p = near.cache[rows, number].double()
    return p.where(p >= 0, read.p[rows])


Candidates = tuple[Tensor, Tensor]  # (Q, K) distances and entries


def before(near: Near, rows: Tensor) -> Candidates:
    """What came before each token in its document."""
    return near.own_distances[rows], near.own_entries[rows].long()


def in_memory(near: Near, rows: Tensor, stored: Tensor) -> Candidates:
    """Of other documents, what is stored, (N,) bool."""
    entries = near.entries[rows].long()
    return near.distances[rows].where(stored[entries], torch.inf), entries


def joined(*each: Candidates) -> Candidates:
    distances, entries = zip(*each, strict=True)
    return torch.cat(distances, dim=1), torch.cat(entries, dim=1)


def p_of_memory(found: Candidates, read: Read, rows: Tensor, temperature: float) -> Tensor:
    """(Q,) of the tokens; the model's own where nothing was found."""
    distances, entries = found
    match = read.targets[entries] == read.targets[rows, None]
    p = p_of_target(distances, match, temperature=temperature).double()
    return p.where(distances.isfinite().any(-1), read.p[rows])


def signs(found: Candidates, read: Read, temperature: float) -> Tensor:
    """(Q, 2) what is known before the token: how near the nearest is, and how many agree with it about the token."""
    distances, entries = found
    least, at = distances.min(1)
    tokens = read.targets[entries]
    agree = p_of_target(distances, tokens == tokens.gather(1, at[:, None]), temperature=temperature)
    farthest = float(distances[distances.isfinite()].max()) if bool(distances.isfinite().any()) else 1.0
    return torch.stack([least.clamp(1e-3, farthest).log(), agree], dim=1).double()


class Counts:
    """N-grams of the documents that are stored."""

    def __init__(self, tokens: TokenArray, read: Read, stored: Sequence[int], vocab_size: int):
        ids, offsets = token_ids(tokens), tokens.offsets
        self._documents = [ids[offsets[i] : offsets[i + 1]] for i in range(tokens.n_documents)]
        self._read = read
        self._counts = baselines.counts_of(torch.cat([self._documents[i] for i in stored]), vocab_size)

    def p(self, asked: Sequence[int]) -> Tensor:
        """(Q,) of the tokens of these documents."""
        return torch.cat([self._counts.probabilities(self._documents[i])[self._at(i)] for i in asked])

    def signs(self, asked: Sequence[int]) -> Tensor:
        """(Q, 1) how many of the tokens before each are a context that occurs."""
        return torch.cat([self._known(self._documents[i])[self._at(i), None] for i in asked])

    def _at(self, document: int) -> Tensor:
        return self._read.positions[self._read.of(document)] + 1

    def _known(self, text: Tensor) -> Tensor:
        n = self._counts.order - 1
        hashes = context_hashes(torch.cat([text.new_full((n,), UNKNOWN), text[:-1]]).unfold(0, n, 1))
        ranges = [level.range_of(h) for level, h in zip(self._counts.levels[1:], hashes[1:], strict=True)]
        return torch.stack([first < last for first, last in ranges]).sum(0).double()


def best_of(p_model: Tensor, p_of: Callable[[int], Tensor]) -> int:
    """Number of the temperature with the fewest nats, each with all weights."""

    def nats(number: int) -> float:
        p = p_of(number)
        return min(float(-(lam * p + (1 - lam) * p_model).log().mean()) for lam in LAMS)

    return min(range(len(SCALES)), key=nats)
