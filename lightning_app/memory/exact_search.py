"""Exact nearest neighbours: fast scores in fp32 choose candidates, and fp64 decides among them.

Shapes: Q queries, N rows, D width, K results. Distances: l2 is |q - x|^2, inner_product -q.x, cosine 1 - cos(q, x).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch  # before faiss: each wheel brings an OpenMP of its own
from torch import Tensor

from lightning_app.memory.kinds import Metric
from lightning_app.memory.nearness import distances, exact_differences, prepared
from lightning_app.models.modes import full_precision

import faiss  # isort: skip

# some queries (q,), and rows (n,) or of each query (q, n) -> (q, n) bool, True where a query must not see a row
Hidden = Callable[[Tensor, Tensor], Tensor]
Release = Callable[[], None]  # gives the pages of a mapped file back

BLOCK_BYTES = 1 << 26  # of rows that are converted, gathered or read from a file at once
PAIR_BYTES = 1 << 20  # of pairs in fp64, which stay in the processor's cache
ROWS_PER_RELEASE = 32  # of a mapped file, read in no order
BLOCK_SCORES = 1 << 24  # elements of one (Q, N) matrix of scores
BLAS_FROM = 5  # queries; a single one is 4 times faster without
SPARE = 4  # candidates beyond those asked for, so that the bound has something to decide by
MANY = 64  # rows per query whose exact distances take longer than a matmul in fp64
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def set_up_faiss(width: int) -> None:
    """FAISS uses as many threads as torch (one in a forked process, where its OpenMP hangs with more), and BLAS early.

    By default it takes BLAS from 167 queries of 768 dimensions on; before that it is 3 to 8 times slower per query.
    """
    faiss.omp_set_num_threads(1 if _forked else torch.get_num_threads())
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM * width


def nearest(
    queries_QD: Tensor,
    vectors_ND: Tensor,
    *,
    k: int,
    metric: Metric,
    rows: Tensor | None = None,
    hidden: Hidden | None = None,
    release: Release | None = None,
    use_faiss: bool = True,
) -> tuple[Tensor, Tensor]:
    """The rows nearest to each query, nearest first, of equal ones the lower row -> distances, rows (Q, K).

    Exact: an fp32 score comes with a bound on its rounding, hence a least distance of all rows that are not among the
    candidates. A query that this leaves undecided is searched again in fp64. Distances are float32, rows int64;
    inf and -1 where there are fewer than K, and for a distance beyond float32.

    Args:
        queries_QD: float32, on the device of the vectors.
        vectors_ND: float32 or float16.
        rows: (R,) the only rows to look at, ascending; None: all.
        hidden: which rows a query must not see.
        release: called after each block of rows.
        use_faiss: first, where it can be used; False: matmul and top-k.
    """
    best = queries_QD.new_full((len(queries_QD), k), torch.inf, dtype=torch.float64)
    found = torch.full_like(best, -1, dtype=torch.long)
    if not best.numel() or not len(vectors_ND if rows is None else rows):
        return as_results(best, found)
    undecided = torch.arange(len(queries_QD), device=queries_QD.device)
    search = _Search(queries_QD, undecided, vectors_ND, k, metric, rows, hidden, release)
    faiss_can = use_faiss and queries_QD.device.type == "cpu"
    by_faiss = [(_by_faiss, k + SPARE if hidden is None else 2 * k + 8)] if faiss_can else []
    by_matmul = [(_by_matmul, k + SPARE)] if hidden is not None or not faiss_can else []
    for by, count in by_faiss + by_matmul:
        part = search.of(undecided)
        slots, beyond = part.candidates(by=by, count=count)
        best[undecided], found[undecided] = part.nearest_of(slots)
        undecided = undecided[~((best[undecided, -1] < beyond) | (beyond == torch.inf))]
        if not len(undecided):
            break
    else:
        best[undecided], found[undecided] = search.of(undecided).in_fp64(limit=best[undecided, -1])
    return as_results(best, found)


@dataclass(frozen=True)
class _Search:
    """See `nearest`; `numbers` are those of the queries (Q,) among all."""

    queries: Tensor
    numbers: Tensor
    vectors: Tensor
    k: int
    metric: Metric
    rows: Tensor | None
    hidden: Hidden | None
    release: Release | None

    def of(self, numbers: Tensor) -> _Search:
        """The same search for some of the queries."""
        return replace(self, queries=self.queries[numbers], numbers=numbers)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(row numbers (n,), float32 rows (n, D))."""
        count = len(self.vectors) if self.rows is None else len(self.rows)
        step = max(1, min(BLOCK_BYTES // (4 * self.vectors.shape[1]), BLOCK_SCORES // max(len(self.queries), 1)))
        for start in range(0, count, step):
            stop = min(start + step, count)
            if self.rows is None:
                yield torch.arange(start, stop, device=self.vectors.device), self.vectors[start:stop].float()
            else:
                yield self.rows[start:stop], self.vectors[self.rows[start:stop]].float()
            if self.release is not None:
                self.release()

    def hides(self, rows: Tensor) -> Tensor | None:
        return None if self.hidden is None else self.hidden(self.numbers, rows)

    def candidates(self, *, by: Callable[..., tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
        """Rows (Q, count) that a fast search finds, and the least distance of all other rows (Q,)."""
        least = self.queries.new_full((len(self.queries), count), torch.inf, dtype=torch.float64)
        found = torch.full_like(least, -1, dtype=torch.long)
        known = torch.ones_like(found[:, 0], dtype=torch.bool)
        for numbers, block_ND in self.blocks():
            hidden = self.hides(numbers) if by is _by_matmul else None
            bounds, at = by(self.queries, block_ND, k=min(count, len(numbers)), metric=self.metric, hidden=hidden)
            known &= (bounds > -torch.inf).all(dim=1)
            rows = numbers[at.clamp(min=0)].masked_fill(at < 0, -1)
            least, order = torch.cat((least, bounds), dim=1).topk(count, dim=1, largest=False, sorted=False)
            found = torch.cat((found, rows), dim=1).gather(1, order)
        return found, least.amax(dim=1).masked_fill(~known, -torch.inf)

    def nearest_of(self, rows_QK: Tensor) -> tuple[Tensor, Tensor]:
        """The k nearest of some rows of each query that it may see."""
        hides = self.hides(rows_QK.clamp(min=0))
        rows_QK = rows_QK if hides is None else rows_QK.masked_fill(hides, -1)
        found = distances_to(self.queries, self.vectors, rows_QK, metric=self.metric, release=self.release)
        return first(found, rows_QK, self.k)

    def in_fp64(self, *, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Search again among all rows that may be within the `limit` (Q,) of a query: several times slower, and never
        undecided."""
        best = limit.new_full((len(limit), self.k), torch.inf)
        found = torch.full_like(best, -1, dtype=torch.long)
        for numbers, block_ND in self.blocks():
            exact, rows = self._pairs(self._near(numbers, block_ND, limit=limit), numbers, block_ND)
            best, found = first(torch.cat((best, exact), dim=1), torch.cat((found, rows), dim=1), self.k)
            limit = torch.minimum(limit, best[:, -1])
        return best, found

    def _near(self, numbers: Tensor, block_ND: Tensor, *, limit: Tensor) -> Tensor:
        """(Q, N) bool: which rows may be within the limit; scores in fp64 narrow down what fp32 leaves many of."""
        hidden = self.hides(numbers)
        for dtype in (torch.float32, torch.float64):
            scores = prepared(self.queries.to(dtype), block_ND.to(dtype), metric=self.metric)
            with full_precision(block_ND.device):
                near_QN = ~(scores.least(scores.by_matmul()) > limit[:, None])  # of NaN nothing is known
            near_QN = near_QN if hidden is None else near_QN & ~hidden
            if int(near_QN.sum()) <= MANY * len(limit):
                break
        return near_QN

    def _pairs(self, near_QN: Tensor, numbers: Tensor, block_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and rows of the pairs that are set, moved to the left (Q, most of them)."""
        places = near_QN.cumsum(dim=1) - 1
        width = int(near_QN.sum(dim=1).max())
        exact = places.new_full((len(near_QN), width), torch.inf, dtype=torch.float64)
        rows = places.new_full((len(near_QN), width), -1)
        for pairs in near_QN.nonzero().split(max(1, PAIR_BYTES // (8 * block_ND.shape[1]))):
            q, n = pairs.unbind(1)
            exact[q, places[q, n]] = distances(self.queries[q], block_ND[n], metric=self.metric)
            rows[q, places[q, n]] = numbers[n]
        return exact, rows


def _by_faiss(
    queries_QD: Tensor, block_ND: Tensor, *, k: int, metric: Metric, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-> least distances (Q, K) and positions in the block (Q, K), of rows that overflow -inf and -1."""
    assert hidden is None
    set_up_faiss(queries_QD.shape[1])
    if metric == "l2" and len(queries_QD) < BLAS_FROM:
        scores = exact_differences(queries_QD, block_ND)
    else:
        scores = prepared(queries_QD, block_ND, metric=metric)
    kind = faiss.METRIC_L2 if scores.is_l2 else faiss.METRIC_INNER_PRODUCT
    found, at = map(torch.from_numpy, faiss.knn(np.ascontiguousarray(scores.q.numpy()), scores.x.numpy(), k, kind))
    return scores.least(found if scores.is_l2 else -found).masked_fill(at < 0, -torch.inf), at


def _by_matmul(
    queries_QD: Tensor, block_ND: Tensor, *, k: int, metric: Metric, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by a matmul; +inf where a row is hidden."""
    scores = prepared(queries_QD, block_ND, metric=metric)
    with full_precision(queries_QD.device):
        scores_QN = scores.by_matmul()
    scores_QN.masked_fill_(~scores_QN.isfinite(), -torch.inf)  # so that what overflows is among the candidates
    if hidden is not None:
        scores_QN.masked_fill_(hidden, torch.inf)
    found, at = scores_QN.topk(k, dim=1, largest=False, sorted=False)
    return scores.least(found).where(found < torch.inf, torch.inf), at.where(found < torch.inf, -1)


def first(distances_QN: Tensor, rows_QN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest distances, and of equal ones the lower rows, in order -> (Q, k) both."""
    order = rows_QN.argsort(dim=1)
    distances_QN, rows_QN = distances_QN.gather(1, order), rows_QN.gather(1, order)
    distances_QN, order = distances_QN.sort(dim=1, stable=True)
    return distances_QN[:, :k], rows_QN.gather(1, order[:, :k])


def as_results(distances_QK: Tensor, rows_QK: Tensor) -> tuple[Tensor, Tensor]:
    """In float32; a row that is infinitely far is none."""
    return distances_QK.float(), rows_QK.masked_fill(distances_QK == torch.inf, -1)


def distances_to(
    queries_QD: Tensor,
    vectors_ND: Tensor,
    rows_QK: Tensor,
    *,
    metric: Metric,
    release: Release | None = None,
) -> Tensor:
    """Distances to some rows of each query, in fp64 -> (Q, K), inf where a row is -1. `release`: as in `nearest`."""
    step = max(1, PAIR_BYTES // (8 * vectors_ND.shape[1] * max(rows_QK.shape[1], 1)))
    found = queries_QD.new_full(rows_QK.shape, torch.inf, dtype=torch.float64)
    for start in range(0, len(rows_QK), step):
        part = slice(start, start + step)
        vectors = _gathered(vectors_ND, rows_QK[part].clamp(min=0).flatten(), release=release)
        vectors_QKD = vectors.view(*rows_QK[part].shape, -1)
        found[part] = distances(queries_QD[part, None], vectors_QKD, metric=metric)
    return found.masked_fill_(rows_QK < 0, torch.inf)


def _gathered(vectors_ND: Tensor, rows: Tensor, *, release: Release | None) -> Tensor:
    """A copy of some rows (R, D); of a file a few at a time, since one read maps as much as 2 MB around a row."""
    if release is None:
        return vectors_ND.index_select(0, rows)  # 8 times faster than [rows]
    copied = vectors_ND.new_empty(len(rows), vectors_ND.shape[1])
    for target, some in zip(copied.split(ROWS_PER_RELEASE), rows.split(ROWS_PER_RELEASE), strict=True):
        torch.index_select(vectors_ND, 0, some, out=target)
        release()
    return copied
