"""Exact nearest neighbours: FAISS on rows as they lie in memory, a matmul and a top-k where FAISS cannot go.

Shapes: Q queries, N rows, D width, K results. Distances: l2 is |q - x|^2, inner_product -q.x, cosine 1 - cos(q, x).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch  # before faiss: each wheel brings an OpenMP of its own
import torch.nn.functional as F
from torch import Tensor

import faiss  # isort: skip

Metric = Literal["l2", "inner_product", "cosine"]
Hidden = Callable[[Tensor], Tensor]  # rows (N,) -> (Q, N) bool, True where a query must not see a row

BLOCK_BYTES = 1 << 26  # of rows that are converted, gathered or read from a file at once
ROWS_PER_RELEASE = 32  # of a mapped file, read in no order
BLOCK_SCORES = 1 << 24  # elements of one (Q, N) matrix of scores
BLAS_FROM = 5  # queries; a single one is 4 times faster without
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


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, TF32 or bf16 inside of fp32 matmuls: neighbours would change places."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def nearest(
    queries_QD: Tensor,
    vectors_ND: Tensor,
    *,
    k: int,
    metric: Metric,
    rows: Tensor | None = None,
    hidden: Hidden | None = None,
    release: Callable[[], None] | None = None,
    use_faiss: bool = True,
) -> Tensor:
    """The rows nearest to each query, in no order -> (Q, K) int64, -1 where there are fewer than K.

    Args:
        queries_QD: float32, on the device of the vectors.
        vectors_ND: float32 or float16.
        rows: (R,) the only rows to look at; None: all.
        hidden: which of some rows each query must not see.
        release: called after each block of rows (it gives the pages of a mapped file back).
        use_faiss: where it can be used; False: matmul and top-k.
    """
    faiss_can = queries_QD.device.type == "cpu" and metric != "cosine" and hidden is None
    search = _by_faiss if use_faiss and faiss_can else _by_matmul
    best = queries_QD.new_full((len(queries_QD), k), torch.inf)
    found = torch.full_like(best, -1, dtype=torch.long)
    for numbers, block_ND in _blocks(vectors_ND, rows=rows, queries=len(queries_QD)):
        forbidden = None if hidden is None else hidden(numbers)
        scores, at = search(queries_QD, block_ND, k=min(k, len(numbers)), metric=metric, hidden=forbidden)
        best, order = torch.cat((best, scores), dim=1).topk(k, dim=1, largest=False, sorted=False)
        found = torch.cat((found, numbers[at]), dim=1).gather(1, order)
        if release is not None:
            release()
    return found.masked_fill(best == torch.inf, -1)


def _blocks(vectors_ND: Tensor, *, rows: Tensor | None, queries: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(row numbers (n,), float32 rows (n, D))."""
    count = len(vectors_ND) if rows is None else len(rows)
    step = max(1, min(BLOCK_BYTES // (4 * vectors_ND.shape[1]), BLOCK_SCORES // max(queries, 1)))
    for start in range(0, count, step):
        stop = min(start + step, count)
        if rows is None:
            yield torch.arange(start, stop, device=vectors_ND.device), vectors_ND[start:stop].float()
        else:
            yield rows[start:stop], vectors_ND[rows[start:stop]].float()


def _by_faiss(
    queries_QD: Tensor, block_ND: Tensor, *, k: int, metric: Metric, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-> scores (Q, K), smaller is nearer, and positions in the block (Q, K)."""
    assert hidden is None
    set_up_faiss(queries_QD.shape[1])
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    scores, at = map(torch.from_numpy, faiss.knn(queries_QD.numpy(), block_ND.numpy(), k, kind))
    return (scores if metric == "l2" else -scores), at


def _by_matmul(
    queries_QD: Tensor, block_ND: Tensor, *, k: int, metric: Metric, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by a matmul. Of |q|^2 - 2 q.x + |x|^2 the first term orders nothing; |q| neither under cosine."""
    with full_precision(queries_QD.device):
        if metric == "l2":
            scores_QN = torch.addmm(block_ND.square().sum(1), queries_QD, block_ND.T, alpha=-2)
        else:
            scores_QN = -(queries_QD @ block_ND.T)
        if metric == "cosine":
            scores_QN /= block_ND.norm(dim=1).clamp(min=1e-12)
    if hidden is not None:
        scores_QN.masked_fill_(hidden, torch.inf)
    scores, at = scores_QN.topk(k, dim=1, largest=False, sorted=False)
    return scores, at


def distances_to(
    queries_QD: Tensor,
    vectors_ND: Tensor,
    rows_QK: Tensor,
    *,
    metric: Metric,
    release: Callable[[], None] | None = None,
) -> Tensor:
    """Distances to some rows of each query, without the cancellation of a matmul's -> (Q, K), inf where a row is -1.

    An equal vector is at an l2 distance of exactly 0. `release`: as in `nearest`.
    """
    plain = queries_QD.device.type == "cpu" and vectors_ND.dtype == torch.float32 and metric != "cosine"
    by = _distances_by_faiss if plain else _distances
    step = max(1, BLOCK_BYTES // (4 * vectors_ND.shape[1] * max(rows_QK.shape[1], 1)))
    found = torch.full_like(rows_QK, torch.inf, dtype=torch.float32)
    for start in range(0, len(rows_QK), step):
        part = slice(start, start + step)
        vectors, rows = vectors_ND, rows_QK[part].clamp(min=0)
        if release is not None:
            vectors, rows = _gathered(vectors_ND, rows, release=release)
        found[part] = by(queries_QD[part], vectors, rows, metric=metric)
    return found.masked_fill_(rows_QK < 0, torch.inf)


def _gathered(vectors_ND: Tensor, rows_QK: Tensor, *, release: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """A copy of some rows of a file (Q * K, D) and their places in it: one read maps as much as 2 MB around a row."""
    copied = vectors_ND.new_empty(rows_QK.numel(), vectors_ND.shape[1])
    for target, rows in zip(copied.split(ROWS_PER_RELEASE), rows_QK.flatten().split(ROWS_PER_RELEASE), strict=True):
        torch.index_select(vectors_ND, 0, rows, out=target)
        release()
    return copied, torch.arange(rows_QK.numel()).view(rows_QK.shape)


def _distances_by_faiss(queries_QD: Tensor, vectors_ND: Tensor, rows_QK: Tensor, *, metric: Metric) -> Tensor:
    """Without a copy of the rows."""
    Q, K = rows_QK.shape
    found = np.empty((Q, K), dtype=np.float32)
    arrays = (found, queries_QD.numpy(), vectors_ND.numpy(), np.ascontiguousarray(rows_QK.numpy()))
    by_idx = faiss.fvec_L2sqr_by_idx if metric == "l2" else faiss.fvec_inner_products_by_idx  # type: ignore[attr-defined]
    by_idx(*map(faiss.swig_ptr, arrays), queries_QD.shape[1], Q, K)
    return torch.from_numpy(found if metric == "l2" else -found)


def _distances(queries_QD: Tensor, vectors_ND: Tensor, rows_QK: Tensor, *, metric: Metric) -> Tensor:
    candidates_QKD = vectors_ND[rows_QK].float()
    queries_Q1D = queries_QD[:, None]
    if metric == "l2":
        return (candidates_QKD - queries_Q1D).square().sum(-1)
    if metric == "inner_product":
        return -(candidates_QKD * queries_Q1D).sum(-1)
    return (1 - F.cosine_similarity(candidates_QKD, queries_Q1D, dim=-1, eps=1e-12)).clamp(min=0)
