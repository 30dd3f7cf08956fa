"""Proofs that surgery did what it says. Each raises `SurgeryError` with the numbers, or returns what it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_app.plasticity.layout import Layer, Slice
from lightning_app.plasticity.report.proofs import HALF_TOLERANCE, TOLERANCE
from lightning_app.plasticity.surgery import state_like
from lightning_app.plasticity.units import Units

Compute = Callable[[], Tensor]  # logits of a few texts, without dropout


class SurgeryError(RuntimeError):
    """A model is not what it should be after units were masked, removed or regrown: a fault of the program."""


@torch.no_grad()
def check_dead_units(units: Units, compute: Compute) -> int:
    """Whatever the weights of masked units are, the logits stay the same, bit for bit.

    All layers are tried at once, as each try is a forward of the model; the one at fault is then looked for.

    Returns: how many masked units were tried; those that were removed have no weights.
    """
    alive = units.mask
    dead = {i: names for i, layer in enumerate(units.layers) if (names := _masked(layer, alive[i]))}
    before = compute()
    if dead and (changed := _changed_by_noise(units, dead, compute, before)):
        single = ({i: names} for i, names in dead.items())
        at_fault = next((one for one in single if _changed_by_noise(units, one, compute, before)), dead)
        where = ", ".join(f"{units.kind} {names} of layer {i}" for i, names in at_fault.items())
        raise SurgeryError(
            f"{where} are dead, and yet the logits change by {changed:.3g} when their weights do: the mask is not read"
        )
    return sum(len(names) for names in dead.values())


def _masked(layer: Layer, alive: Tensor) -> list[int]:
    return [unit for unit in layer.present if not alive[unit]]


def _changed_by_noise(units: Units, dead: dict[int, list[int]], compute: Compute, before: Tensor) -> float:
    """The largest change of a logit by random numbers in what the output projections read of these units, by layer."""
    with ExitStack() as noisy:
        for i, names in dead.items():
            noisy.enter_context(_noise(units.layers[i], names, seed=i))
        after = compute()
    return 0.0 if torch.equal(before, after) else float((after - before).abs().max())


@contextmanager
def _noise(layer: Layer, names: list[int], *, seed: int) -> Iterator[None]:
    part, places = layer.in_out, [layer.present.index(unit) for unit in names]
    at = part.positions(layer.present)[places].flatten().to(part.parameter.device)
    own = part.parameter.detach().index_select(part.dim, at)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).to(own)
    part.parameter.index_copy_(part.dim, at, noise)
    try:
        yield
    finally:
        part.parameter.index_copy_(part.dim, at, own)


def logits_agree(before: Tensor, after: Tensor, *, what: str) -> float:
    """Two ways to compute the same logits. Returns: their largest difference.

    Raises:
        SurgeryError: they differ by more than rounding.
    """
    tolerance = TOLERANCE if before.dtype == torch.float32 else HALF_TOLERANCE
    difference, scale = float((after.float() - before.float()).abs().max()), float(before.float().abs().max())
    if not difference <= tolerance * max(1.0, scale):
        raise SurgeryError(
            f"{what}: the logits differ by {difference:.3g}, where {tolerance * max(1.0, scale):.3g} is allowed"
        )
    return difference


def counts_agree(units: Units, expected: Tensor) -> int:
    """Exactly the units of `expected` (L, N) bool are alive. Returns: how many are dead."""
    alive = units.mask
    if not torch.equal(alive, expected):
        wrong = (alive != expected).nonzero().tolist()
        raise SurgeryError(
            f"{int((~expected).sum())} {units.kind} should be dead, {int((~alive).sum())} are; alive where they should "
            f"not be, or the other way round: {wrong[:8]}"
        )
    return int((~alive).sum())


def optimizer_knows(module: nn.Module, optimizer: Optimizer) -> int:
    """The optimizer has the module's trained parameters, each once and no other, with state of their shapes.

    Returns: how many.
    """
    own = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    theirs = [p for group in optimizer.param_groups for p in group["params"]]
    missing = [name for key, name in own.items() if key not in {id(p) for p in theirs}]
    if missing or len(theirs) != len(own):
        raise SurgeryError(
            f"the optimizer has {len(theirs)} parameters, the model trains {len(own)}; it lacks {missing[:3]}: "
            "it would go on updating what is no longer part of the model"
        )
    stale = [p for p in optimizer.state if id(p) not in own]
    if stale:
        raise SurgeryError(f"the optimizer has state of {len(stale)} parameters that are no longer part of the model")
    for parameter in theirs:
        state_like(optimizer, parameter)
    return len(own)


@contextmanager
def removal_checked(units: Units, optimizer: Optimizer | None) -> Iterator[None]:
    """What lies within removes units (and keeps them): weights and optimizer state that stay, and those that go, must
    be the ones of before, bit for bit."""
    before = [
        [{"": part.parameter.detach().clone()} | _clones(optimizer, part.parameter) for part in layer.parts]
        for layer in units.layers
    ]
    were, alive = [list(layer.present) for layer in units.layers], units.mask
    yield
    for i, layer in enumerate(units.layers):
        for number, part in enumerate(layer.parts):
            now: dict[str, Tensor] = {"": part.parameter.detach(), **state_like(optimizer, part.parameter)}
            if now.keys() != before[i][number].keys():
                raise SurgeryError(
                    f"layer {i}: the optimizer's state was {sorted(before[i][number])}, now it is {sorted(now)}"
                )
            for name, old in before[i][number].items():
                _compare(units, i, number, name, old, now[name], were[i], alive[i])


def _clones(optimizer: Optimizer | None, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in state_like(optimizer, parameter).items()}


def _compare(
    units: Units, i: int, number: int, name: str, old: Tensor, new: Tensor, were: Sequence[int], alive: Tensor
) -> None:
    """One tensor of a part, unit by unit. Of units that go what is kept; of those masked before, it is older."""
    layer, part = units.layers[i], units.layers[i].parts[number]
    width = part.index.shape[1]
    if new.shape[part.dim] != width * len(layer.present):
        raise SurgeryError(
            f"layer {i}: {name or part.name} has {new.shape[part.dim]} rows for {len(layer.present)} {units.kind} "
            f"of {width}"
        )
    old_at, new_at = part.positions(were), part.positions(layer.present)
    places = {unit: place for place, unit in enumerate(were)}
    source = old.index_select(part.dim, old_at[[places[u] for u in layer.present]].flatten().to(old.device))
    if not torch.equal(source, new.index_select(part.dim, new_at.flatten().to(new.device))):
        raise SurgeryError(f"{units.kind} that stay in layer {i} have other numbers in {name or part.name} than before")
    for unit in places.keys() - set(layer.present):
        if alive[unit] and (i, unit) in units.kept:
            kept = units.kept[i, unit][number]
            gone = old.index_select(part.dim, old_at[places[unit]].to(old.device)).cpu()
            if not torch.equal(gone, kept.state[name] if name else kept.value):
                where = f"{units.kind[:-1]} {unit} of layer {i}"
                raise SurgeryError(f"{where} was not kept as it was: {name or part.name} differs")


def as_kept(units: Units, layer: int, unit: int, slices: Sequence[Slice], optimizer: Optimizer | None) -> None:
    """A unit that was regrown by `undo` has the weights and the optimizer state of when it died, bit for bit."""
    for now, then in zip(units.slice_of(layer, unit, optimizer), slices, strict=True):
        same = torch.equal(now.value, then.value)
        same = same and all(name in now.state and torch.equal(now.state[name], x) for name, x in then.state.items())
        if not same:
            raise SurgeryError(f"{units.kind[:-1]} {unit} of layer {layer} did not come back as it was")
