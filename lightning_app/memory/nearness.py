"""Nearness of vectors: exact distances in fp64, and scores by a matmul with a bound on how far they may be off.

Shapes: Q queries, N rows, D width, K results. Distances: l2 is |q - x|^2, inner_product -q.x, cosine 1 - cos(q, x).
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_app.memory.kinds import Metric

LARGEST = {torch.float32: 1e37, torch.float64: 1e300}  # sums of squares up to it overflow nowhere on the way
SAMPLE = 64  # rows of which the middle is taken
SMALL, LARGE = 1e-12, 1e18  # norms between them have squares that neither vanish nor overflow in fp32


def distances(queries: Tensor, rows: Tensor, *, metric: Metric) -> Tensor:
    """Distances of each query to the row beside it, in fp64: (..., D) twice -> (...); inf where it is beyond float32.

    Equal vectors have an l2 distance of 0, and a vector of zeros has a cosine distance of 1 to all.
    """
    found = _distances(queries.double(), rows.to(torch.float64, copy=True), metric=metric)
    return found.where(found.abs() <= torch.finfo(torch.float32).max, torch.inf)


def _distances(q: Tensor, x: Tensor, *, metric: Metric) -> Tensor:
    """Overwrites x."""
    if metric == "l2":
        return torch.linalg.vector_norm(x.sub_(q), dim=-1).square()
    dots = torch.linalg.vecdot(x, q)
    if metric == "inner_product":
        return -dots
    norms = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(q, dim=-1)
    return (1 - dots / norms.where(norms > 0, 1.0)).clamp(min=0)


@dataclass(frozen=True)
class Scores:
    """Queries and rows made ready for a matmul, in the precision that they have.

    Attributes:
        q, x: (Q, D), (N, D); under l2 |q - x|^2 is the distance, else -q.x + shift is.
        shift: (Q, 1) fp64.
        scale: (Q, 1) fp64, what the rounding is relative to where it is more than the score; inf: nothing is known.
        relative: of that, the most that a score may be off by.
    """

    q: Tensor
    x: Tensor
    is_l2: bool
    shift: Tensor
    scale: Tensor
    relative: float

    def least(self, scores_QK: Tensor) -> Tensor:
        """The least distance (fp64) that a row with this score may have; -inf where the score says nothing."""
        scores = scores_QK.double()
        sizes = torch.maximum(scores.abs(), self.scale)
        vanished = self.q.shape[1] * 4 * torch.finfo(self.q.dtype).tiny
        bounds = scores + self.shift - self.relative * sizes - vanished
        return bounds.where(sizes < LARGEST[self.q.dtype], -torch.inf)  # NaN is not less

    def by_matmul(self) -> Tensor:
        """(Q, N) scores."""
        if not self.is_l2:
            return -(self.q @ self.x.T)
        scores_QN = torch.addmm(self.x.square().sum(1), self.q, self.x.T, alpha=-2)
        return scores_QN.add_(self.q.square().sum(1, keepdim=True))


def prepared(queries_QD: Tensor, rows_ND: Tensor, *, metric: Metric) -> Scores:
    """Bounds from |fl(x.y) - x.y| <= D u |x|.|y| in any order of summation (Higham 2002, section 3.1).

    |q|^2 - 2q.x + |x|^2 is off by D u (|q| + |x|)^2 at most. That is 9 D u |q|^2 where |x| <= 2|q|, and else 9 D u
    times the distance itself, so that a single long row makes no bound worse.
    """
    unit = (queries_QD.shape[1] + 16) * torch.finfo(queries_QD.dtype).eps / 2  # 16: for what is rounded before
    if metric == "cosine":
        return _of_directions(queries_QD, rows_ND, unit=unit)
    middle_D = _middle(rows_ND)
    x_ND = rows_ND if middle_D is None else rows_ND - middle_D
    if metric == "l2":
        q_QD = queries_QD if middle_D is None else queries_QD - middle_D
        squares_Q1 = q_QD.double().square().sum(1, keepdim=True)
        return Scores(q_QD, x_ND, True, torch.zeros_like(squares_Q1), squares_Q1, 9 * unit)
    norms_Q1, longest = _norms(queries_QD)[:, None], _norms(x_ND).max()
    shift_Q1, scale_Q1 = torch.zeros_like(norms_Q1), norms_Q1 * longest
    if middle_D is not None:  # -q.x is -q.(x - middle) - q.middle
        shift_Q1 = -(queries_QD.double() @ middle_D.double())[:, None]
        finest = torch.finfo(torch.float64).eps / torch.finfo(queries_QD.dtype).eps
        scale_Q1 = scale_Q1 + finest * norms_Q1 * _norms(middle_D)  # of the shift's own rounding
    return Scores(queries_QD, x_ND, False, shift_Q1, scale_Q1, 2 * unit)


def exact_differences(queries_QD: Tensor, rows_ND: Tensor) -> Scores:
    """Scores |q - x|^2 that are summed up from the differences; the bound is relative to these."""
    unit = (queries_QD.shape[1] + 16) * torch.finfo(queries_QD.dtype).eps / 2
    nothing = queries_QD.new_zeros(len(queries_QD), 1, dtype=torch.float64)
    return Scores(queries_QD, rows_ND, True, nothing, nothing, 3 * unit)


def _of_directions(queries_QD: Tensor, rows_ND: Tensor, *, unit: float) -> Scores:
    (q_QD, good_Q), (x_ND, good_N) = _directions(queries_QD), _directions(rows_ND)
    scale_Q1 = torch.where(good_Q & good_N.all(), 1.0, torch.inf).double()[:, None]
    return Scores(q_QD, x_ND, False, torch.ones_like(scale_Q1), scale_Q1, 4 * unit)


def _directions(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, or of zeros, and for which that holds (N,)."""
    norms_N = torch.linalg.vector_norm(rows_ND, dim=1)
    usual = (norms_N > SMALL) & (norms_N < LARGE)
    good = usual.clone()
    good[~usual] = ~rows_ND[~usual].any(dim=1)
    return rows_ND / norms_N.where(usual, 1.0)[:, None], good


def _norms(rows: Tensor) -> Tensor:
    """fp64; those that overflow are inf, which is what nothing is known of."""
    return torch.linalg.vector_norm(rows, dim=-1).double()


def _middle(rows_ND: Tensor) -> Tensor | None:
    """A point near most rows (D,), or None where the origin is as near: far from all rows the scores cancel.

    A median, since one row of 1e20 would draw a mean away.
    """
    sample = rows_ND[:: -(-len(rows_ND) // SAMPLE)]
    middle_D = sample.median(dim=0).values
    spread = (sample - middle_D).square().sum(1).median()
    return middle_D if middle_D.square().sum() > spread else None
