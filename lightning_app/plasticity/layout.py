"""What a checkpoint knows of units beside the weights, in plain types: which are there, and what was cut out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.plasticity.parts import Kept, Layer, Slice


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
    """Of what `kept_state` gave."""
    return {
        (one["layer"], one["unit"]): [Slice(part["value"], part["state"]) for part in one["parts"]] for one in state
    }
