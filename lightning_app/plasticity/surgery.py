"""Surgery on one layer: its parameters, and what an optimizer knows of them, are rebuilt for the units that are there.

Shapes: P units that are there, B batch, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_app.errors import InputError
from lightning_app.models.backbone import GATE, MASK
from lightning_app.plasticity.layout import Layer, Part, Slice

PRESENT = "present_heads"  # buffer of an attention with a bias for each head


def slice_of(layer: Layer, unit: int, optimizer: Optimizer | None = None) -> list[Slice]:
    """Copies, on the CPU, of what each part has of a unit that is there."""
    place, found = layer.present.index(unit), []
    for part in layer.parts:
        at = part.positions(layer.present)[place]

        def take(x: Tensor, part: Part = part, at: Tensor = at) -> Tensor:
            return x.detach().index_select(part.dim, at.to(x.device)).cpu()

        state = {name: take(x) for name, x in state_like(optimizer, part.parameter).items()}
        found.append(Slice(take(part.parameter), state))
    return found


def new_slices(layer: Layer, *, seed: int) -> list[Slice]:
    """The weights of a new unit: as spread as the layer's other weights; biases and what the output projection reads
    are 0.

    Drawn by a generator of its own, so that all ranks draw the same.
    """
    generator, slices = torch.Generator().manual_seed(seed), []
    for part in layer.parts:
        parameter = part.parameter.detach()
        shape = list(parameter.shape)
        shape[part.dim] = part.index.shape[1]
        fresh = torch.zeros(shape, dtype=parameter.dtype)
        if not part.is_input and parameter.dim() > 1:
            spread = float(parameter.float().std()) if parameter.numel() > 1 else 0.02
            fresh.normal_(std=spread, generator=generator)
        slices.append(Slice(fresh, {}))
    return slices


def move(layer: Layer, present: list[int], joining: dict[int, list[Slice]], optimizer: Optimizer | None = None) -> None:
    """Rebuild a layer's parameters for the units of `present`, by rising index.

    Args:
        joining: what each part gets of the units that were not there.
    """
    before = layer.present
    if present == before:
        return
    was, now = ({unit: place for place, unit in enumerate(units)} for units in (before, present))
    staying = [unit for unit in present if unit in was]
    for number, part in enumerate(layer.parts):
        old, new = part.positions(before), part.positions(present)
        source = old[[was[unit] for unit in staying]].flatten()
        target = new[[now[unit] for unit in staying]].flatten()
        joined = {unit: (new[now[unit]], slices[number]) for unit, slices in joining.items()}

        def rebuilt(
            x: Tensor,
            name: str | None = None,
            dim: int = part.dim,
            size: int = new.numel(),
            source: Tensor = source,
            target: Tensor = target,
            joined: dict[int, tuple[Tensor, Slice]] = joined,
        ) -> Tensor:
            shape = list(x.shape)
            shape[dim] = size
            made = x.detach().new_zeros(shape)
            made.index_copy_(dim, target.to(x.device), x.detach().index_select(dim, source.to(x.device)))
            for at, given in joined.values():
                values = given.value if name is None else given.state.get(name)
                if values is not None:
                    made.index_copy_(dim, at.to(x.device), values.to(x))
            return made

        replace_parameter(part.module, part.name, rebuilt, optimizer)
    _follow(layer, present)


def _follow(layer: Layer, present: list[int]) -> None:
    """Counts and masks after the parameters; units that have joined are alive."""
    alive = dict(zip(layer.present, layer.out.get_buffer(MASK).tolist(), strict=True)) if layer.gated else {}
    layer.present = present
    for module, attribute, each in layer.counts:
        setattr(module, attribute, each * len(present))
    for module in {id(part.module): part.module for part in layer.parts}.values():
        _note_sizes(module)
    if layer.biased is not None:
        if PRESENT not in layer.biased._buffers:
            layer.biased.register_forward_pre_hook(cut_alibi, with_kwargs=True)
        there = torch.tensor(present, dtype=torch.int64, device=layer.in_out.parameter.device)
        layer.biased.register_buffer(PRESENT, there, persistent=False)
    if layer.gated:
        weight = layer.in_out.parameter
        layer.out._buffers[MASK] = torch.tensor([alive.get(u, 1.0) for u in present], device=weight.device)
        layer.out._buffers[GATE] = torch.ones(len(present), device=weight.device)


def cut_alibi(
    attention: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of an attention: alibi (B H, 1, S) of all heads -> of those that are there."""
    alibi, B = kwargs.get("alibi"), arguments[0].shape[0]
    if not isinstance(alibi, Tensor):
        return None
    cut = alibi.unflatten(0, (B, alibi.shape[0] // B))[:, attention.get_buffer(PRESENT)].flatten(0, 1)
    return arguments, {**kwargs, "alibi": cut}


def state_like(optimizer: Optimizer | None, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an optimizer knows of a parameter element by element.

    Raises:
        InputError: it knows something in another shape (sharded, or compressed), which cannot be cut.
    """
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    tensors = {name: x for name, x in state.items() if isinstance(x, Tensor) and x.dim() > 0}
    for name, x in tensors.items():
        if x.shape != parameter.shape:
            raise InputError(
                f"{type(optimizer).__name__} keeps {name!r} of shape {tuple(x.shape)} for a parameter of shape "
                f"{tuple(parameter.shape)}, which cannot be cut: use AdamW or SGD, or surgery: mask"
            )
    return tensors


def replace_parameter(
    module: nn.Module, name: str, rebuilt: Callable[..., Tensor], optimizer: Optimizer | None
) -> None:
    """Put `rebuilt(old)` in a parameter's place, in its module and in the optimizer, and `rebuilt(x, name)` in that of
    each tensor x of its state."""
    old = getattr(module, name)
    new = nn.Parameter(rebuilt(old), requires_grad=old.requires_grad)
    if optimizer is not None and old in optimizer.state:
        cut = {key: rebuilt(x, key) for key, x in state_like(optimizer, old).items()}
        optimizer.state[new] = {**optimizer.state.pop(old), **cut}
    for group in optimizer.param_groups if optimizer is not None else []:
        group["params"] = [new if p is old else p for p in group["params"]]
    setattr(module, name, new)


def _note_sizes(module: nn.Module) -> None:
    """nn.Linear names its sizes for printing, Hugging Face's Conv1D computes with them."""
    weight = module.get_parameter("weight")
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    else:
        module.nx, module.nf = weight.shape  # type: ignore[assignment]
