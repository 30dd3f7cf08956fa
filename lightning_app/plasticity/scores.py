"""What the units of a model are worth: scores of several kinds brought to one scale, combined and compared.

Shapes: L layers, H heads (or other units) of each. NaN stands for a unit that is dead or was not measured,
and stays NaN.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_app.errors import InputError


def min_max(x: Tensor, alive: Tensor | None = None) -> Tensor:
    """To [0, 1] over all living units together; 0 everywhere if they are all the same. Any shape, float32 at least.

    Nothing is added to the range: gradients of 1e-8 are scaled like any others.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    measured = ~x.isnan() if alive is None else ~x.isnan() & alive
    low = x.where(measured, torch.inf).amin()
    span = x.where(measured, -torch.inf).amax() - low
    return ((x - low) / span.where(span > 0, 1)).where(measured, torch.nan)


def seed_score(entropy: Tensor, gradient_norm: Tensor, alive: Tensor | None = None) -> Tensor:
    """0.6 entropy + 0.4 (1 - gradient norm), each from 0 to 1 over all layers: the higher, the sooner it is pruned.

    A head that looks everywhere and that learning does not use. An importance is the other way round: take minus this.
    """
    return 0.6 * min_max(entropy, alive) + 0.4 * (1 - min_max(gradient_norm, alive))


def combine(datasets_LH: Sequence[Tensor], weights: Sequence[float], how: Literal["mean", "max"] = "mean") -> Tensor:
    """(L, H) importance over several data sets, each brought to 0 to 1 first. NaN where one of them has NaN.

    Args:
        weights: of each data set, at least 0. `mean` is their weighted mean; `max` the largest weighted value, the
            largest weight counted as 1: a head that one data set needs stays.
    """
    if len(datasets_LH) != len(weights) or not weights:
        raise InputError(f"{len(datasets_LH)} data sets and {len(weights)} weights; give one weight for each data set")
    if min(weights) < 0 or max(weights) == 0:
        raise InputError(f"weights are {list(weights)}; none may be below 0, and one must be above")
    if len({x.shape for x in datasets_LH}) > 1:
        raise InputError(f"data sets of shapes {[tuple(x.shape) for x in datasets_LH]}: they must be of one model")
    if how not in ("mean", "max"):
        raise InputError(f"how is {how!r}; it must be mean or max")
    scale = sum(weights) if how == "mean" else max(weights)
    weighted = torch.stack([min_max(x) * (weight / scale) for x, weight in zip(datasets_LH, weights, strict=True)])
    return weighted.sum(0) if how == "mean" else weighted.amax(0)


def by_relative_depth(importance_LH: Tensor, shape: tuple[int, int]) -> Tensor:
    """The importance that a model of another size gives the units of one of `shape`: interpolated linearly over depth.

    First layer lies on first layer and last on last; a single layer lies in the middle. Where both have as many heads,
    head h is taken for head h, which holds for a model that was made of layers of the other (DistilGPT-2 of GPT-2).
    Otherwise the number of a head means nothing, and all get the mean of their depth. Dead units of the source do not
    count; NaN where nothing living lies near.
    """
    measured = ~importance_LH.isnan()
    near = _interpolation(len(importance_LH), shape[0]).to(importance_LH)
    total, weight = near @ importance_LH.nan_to_num(), near @ measured.to(importance_LH)
    if importance_LH.shape[1] != shape[1]:
        total, weight = total.sum(1, keepdim=True), weight.sum(1, keepdim=True)
    return (total / weight).expand(shape).clone()  # 0 / 0 is NaN


def _interpolation(sources: int, targets: int) -> Tensor:
    """(targets, sources) weights of the layers on both sides; each row sums to 1."""
    last = sources - 1
    at = torch.arange(targets).double() * last / (targets - 1) if targets > 1 else torch.tensor([last / 2])
    return (1 - (at[:, None] - torch.arange(sources)).abs()).clamp_min(0)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, with mean ranks for ties (Spearman 1904). Pairs with a NaN are left out.

    NaN where it is undefined: fewer than two pairs, or all values of one side the same.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    both = ~(a.isnan() | b.isnan())
    x, y = _ranks(a[both]), _ranks(b[both])
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x.norm() * y.norm()))


def _ranks(values: Tensor) -> Tensor:
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[which]
