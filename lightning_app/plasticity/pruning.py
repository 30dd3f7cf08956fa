"""How many units go, and which: choices that follow from their arguments alone, so that a log can repeat them.

Shapes: L layers, H heads of each, N neurons of each. `alive` is True for units that are still there.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_app.errors import InputError

Unit = tuple[int, int]  # layer, and number in it


def dead_after(level: float | Sequence[float], total: int, cycle: int, cycles: int) -> int:
    """How many of `total` units are dead in all after cycle `cycle` of `cycles`, counted from 1; 0 is before the first.

    Args:
        level: the share at the end, reached in even steps; or the share after each cycle, which never falls.
    """
    if not 0 <= cycle <= cycles:
        raise InputError(f"cycle {cycle} of {cycles}")
    if isinstance(level, Sequence):
        levels = list(level)
        if len(levels) != cycles:
            raise InputError(
                f"pruning_level has {len(levels)} values for {cycles} cycles; give one for each, or one in all"
            )
        if levels != sorted(levels):
            raise InputError(f"pruning_level is {levels}; it must not fall")
    else:
        levels = [level * c / cycles for c in range(1, cycles + 1)]
    if any(not 0 <= share <= 1 for share in levels):
        raise InputError(f"pruning_level is {level}; it must lie between 0 and 1")
    return round(levels[cycle - 1] * total) if cycle else 0


def as_mask(units: Iterable[Unit], shape: Sequence[int]) -> Tensor:
    """(L, H) bool, True at the units."""
    mask = torch.zeros(*shape, dtype=torch.bool)
    for unit in units:
        mask[unit] = True
    return mask


def choose(importance_LH: Tensor, alive_LH: Tensor, n: int, *, keep_per_layer: int = 1) -> list[Unit]:
    """The n least important living units, the least important one first; of equal ones the first by layer and number.

    No layer loses a unit when it has `keep_per_layer` or fewer.

    Raises:
        InputError: so many are not to be had, or a living unit has no importance (NaN).
    """
    left = alive_LH.sum(1).tolist()
    spare = sum(max(0, width - keep_per_layer) for width in left)
    if not 0 <= n <= spare:
        raise InputError(
            f"{n} units are to go, and {spare} can: {sum(left)} are alive, and each layer keeps {keep_per_layer}. "
            "Lower the pruning level"
        )
    _need_numbers(importance_LH, alive_LH)
    chosen: list[Unit] = []
    for layer, head in _ordered(importance_LH, alive_LH):
        if len(chosen) == n:
            break
        if left[layer] > keep_per_layer:
            left[layer] -= 1
            chosen.append((layer, head))
    return chosen


def most_missed(gradient_LH: Tensor, alive_LH: Tensor, n: int) -> list[Unit]:
    """The n dead units with the largest gradient (its size), the largest first; of equal ones the first.

    Raises:
        InputError: fewer are dead, or a dead unit has no gradient (NaN).
    """
    dead_LH = ~alive_LH
    if not 0 <= n <= dead_LH.sum():
        raise InputError(f"{n} units are to come back, and {int(dead_LH.sum())} are dead")
    _need_numbers(gradient_LH, dead_LH)
    return _ordered(-gradient_LH, dead_LH)[:n]


def _need_numbers(values_LH: Tensor, of_LH: Tensor) -> None:
    missing = (values_LH.isnan() & of_LH).nonzero().tolist()
    if missing:
        layer, unit = missing[0]
        raise InputError(
            f"{len(missing)} units have no score (NaN), the first is {unit} of layer {layer}: measure them"
        )


def _ordered(values_LH: Tensor, of_LH: Tensor) -> list[Unit]:
    """The units that are True in `of_LH`, by value, then by layer and number."""
    places = of_LH.nonzero()
    return [(layer, unit) for layer, unit in places[values_LH[of_LH].argsort(stable=True)].tolist()]


def choose_widths(importance_LN: Tensor, alive_LN: Tensor, n: int, *, multiple: int = 32) -> Tensor:
    """(L, N) True for the about n neurons that go: each layer keeps a multiple of `multiple` neurons, one at least.

    In each layer they go from the least important on, in chunks of `multiple`; of all layers' chunks those whose mean
    importance is least. A layer whose width is not a multiple always loses the few that are too many, even at n = 0.
    The total is the nearest to n that this allows, of two the smaller.

    Raises:
        InputError: a layer has fewer than `multiple` neurons, n are not to be had, or one has no importance (NaN).
    """
    widths = alive_LN.sum(1).tolist()
    if min(widths) < multiple:
        raise InputError(
            f"a layer has {min(widths)} neurons left, fewer than the multiple {multiple} that it must keep"
        )
    spare = sum(widths) - len(widths) * multiple
    if not 0 <= n <= spare:
        raise InputError(
            f"{n} neurons are to go, and {spare} can: each layer keeps {multiple}. Lower the pruning level"
        )
    _need_numbers(importance_LN, alive_LN)
    removed_LN = torch.zeros_like(alive_LN)
    chunks: list[tuple[float, int, Tensor]] = []  # mean importance, layer, neurons
    for layer, (importance_N, alive_N) in enumerate(zip(importance_LN, alive_LN, strict=True)):
        living = alive_N.nonzero()[:, 0]
        order = living[importance_N[living].argsort(stable=True)]
        excess = len(order) % multiple
        removed_LN[layer, order[:excess]] = True
        for start in range(excess, len(order) - multiple, multiple):
            chunk = order[start : start + multiple]
            chunks.append((float(importance_N[chunk].double().mean()), layer, chunk))
    chunks.sort(key=lambda chunk: chunk[0])  # stable: of equal ones the first layer's
    missing = max(0, n - int(removed_LN.sum()))
    for _, layer, chunk in chunks[: (missing + (multiple - 1) // 2) // multiple]:
        removed_LN[layer, chunk] = True
    return removed_LN
