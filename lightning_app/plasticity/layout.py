"""Where the units of a layer lie in its parameters, and what a checkpoint knows of them beside the weights.

Shapes: L layers, N units of a layer at first, P of them that are there, k positions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import MASK

Kind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Part:
    """A parameter along one dimension of which units lie.

    Attributes:
        module: that has the parameter.
        name: weight or bias.
        dim: the dimension.
        index: (N, k) the k positions of each unit, in the whole parameter.
        is_input: True for the projection that consumes the unit's output (c_proj, o_proj).
    """

    module: nn.Module
    name: str
    dim: int
    index: Tensor
    is_input: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        parameter = getattr(self.module, self.name)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def positions(self, present: Sequence[int]) -> Tensor:
        """(P, k) positions of units where these alone are there: what is left moves together."""
        there = self.index[list(present)]
        return there.flatten().argsort().argsort().view(there.shape)


@dataclass
class Layer:
    """The units of one layer.

    Attributes:
        out: the projection that consumes the units' output; unit u's numbers are u k to u k + k - 1 of its input. With
            adapters it is what holds them.
        parts: all parameters in which units have rows or columns.
        counts: (module, attribute, how much of it is one unit's) of numbers that follow.
        n: N.
        biased: attention that is handed a bias for each head, see `cut_alibi`.
        query_heads: of a unit: more than 1 where they share keys and values.
        present: units that are there, by rising index.
    """

    out: nn.Module
    parts: list[Part]
    counts: list[tuple[nn.Module, str, int]]
    n: int
    biased: nn.Module | None = None
    query_heads: int = 1
    present: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.present = list(range(self.n))

    @property
    def in_out(self) -> Part:
        """Where units stand in the output projection's weight."""
        return next(part for part in self.parts if part.is_input)

    @property
    def gated(self) -> bool:
        return MASK in self.out._buffers


@dataclass(frozen=True)
class Slice:
    """What one parameter had of one unit.

    Attributes:
        value: of the parameter.
        state: of the optimizer, by name.
    """

    value: Tensor
    state: dict[str, Tensor]


Kept = dict[tuple[int, int], list[Slice]]  # by layer and unit; one slice for each part


# In plain types


def layout_of(layers: Sequence[Layer], mask: Tensor) -> dict[str, Any]:
    """Which units are there and which of them are masked; mask (L, N) bool, True where one is alive."""
    return {
        "shape": list(mask.shape),
        "present": [list(layer.present) for layer in layers],
        "masked": [[u for u in layer.present if not mask[i, u]] for i, layer in enumerate(layers)],
    }


def mask_of(layout: dict[str, Any]) -> Tensor:
    """(L, N) bool, False where a unit is masked."""
    mask = torch.ones(*layout["shape"], dtype=torch.bool)
    for row, masked in zip(mask, layout["masked"], strict=True):
        row[masked] = False
    return mask


def check_shape(layout: dict[str, Any], shape: tuple[int, int], kind: str) -> None:
    """Refuses the layout of a model of another shape."""
    if list(layout["shape"]) != list(shape):
        raise InputError(
            f"the checkpoint's model has {layout['shape'][0]} layers of {layout['shape'][1]} {kind}, this one "
            f"{shape[0]} of {shape[1]}: give the options that the checkpoint was trained with"
        )


def kept_state(kept: Kept) -> list[dict[str, Any]]:
    """What was cut out, in plain types and tensors."""
    return [
        {"layer": layer, "unit": unit, "parts": [{"value": s.value, "state": s.state} for s in slices]}
        for (layer, unit), slices in kept.items()
    ]


def kept_from(state: list[dict[str, Any]]) -> Kept:
    """The kept units, from what `kept_state` gave."""
    return {
        (one["layer"], one["unit"]): [Slice(part["value"], part["state"]) for part in one["parts"]] for one in state
    }
