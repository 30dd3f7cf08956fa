"""Masks and gates: each unit's numbers are multiplied by both, before the output projection consumes them.

Shapes: L layers, N units of a layer at first, P of them that are there, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_app.models.backbone import GATE, MASK
from lightning_app.plasticity.layout import Layer


def multiply_by_gates(out: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of an output projection: its input (.., P k) times gate and mask of each unit.

    It reads the buffers of the module that it is called with, so a deep copy of a model has gates of its own.
    """
    x, scale = arguments[0], out.get_buffer(GATE) * out.get_buffer(MASK)
    n = scale.shape[-1]
    if scale.dim() == 2:  # (B, P): gates of each sequence
        scale = scale[:, None].expand(-1, x.numel() // x.shape[-1] // len(scale), n).reshape(*x.shape[:-1], n)
    return ((x.unflatten(-1, (n, x.shape[-1] // max(1, n))) * scale[..., None].to(x.dtype)).flatten(-2), *arguments[1:])


class Gates:
    """The masks and gates of all layers. A layer of which nothing is masked has none, unless gates are open.

    Attributes:
        are_open: each unit has a gate, whether something is masked or not.
    """

    def __init__(self, layers: Sequence[Layer]):
        self.layers, self.are_open = layers, False

    def mask(self) -> Tensor:
        """(L, N) bool, True where a unit is alive."""
        mask = torch.zeros(len(self.layers), self.layers[0].n, dtype=torch.bool)
        for row, layer in zip(mask, self.layers, strict=True):
            row[layer.present] = layer.out.get_buffer(MASK).cpu() != 0 if layer.gated else True
        return mask

    def set_mask(self, mask: Tensor) -> None:
        """(L, N) bool: what is False is multiplied by 0 from now on. Removed units stay dead whatever it says."""
        for row, layer in zip(mask, self.layers, strict=True):
            there = row[layer.present]
            if not bool(there.all()) and not layer.gated:
                _add(layer)
            if layer.gated:
                layer.out.get_buffer(MASK).copy_(there.to(layer.out.get_buffer(MASK)))
        self.drop_without_effect()

    def drop_without_effect(self) -> None:
        """So that a model of which nothing is masked is as fast as a plain one."""
        for layer in self.layers:
            if layer.gated and not self.are_open and bool(layer.out.get_buffer(MASK).all()):
                _drop(layer)

    def switch_on(self) -> None:
        """Have a gate of 1 at each unit, until `switch_off`."""
        self.are_open = True
        for layer in self.layers:
            if not layer.gated:
                _add(layer)

    def switch_off(self) -> None:
        """All gates are 1 again, and gone where nothing is masked."""
        self.are_open = False
        for layer in self.layers:
            layer.out._buffers[GATE] = torch.ones_like(layer.out.get_buffer(MASK))
        self.drop_without_effect()

    def set(self, gates: Tensor, *, gradient: bool = False) -> list[Tensor]:
        """Give open gates their values: (L, N), or (B, L, N) for each sequence of a batch.

        Returns: for each layer the leaf (P,) or (B, P), whose gradient is dL/dgate if asked for.
        """
        leaves = []
        for i, layer in enumerate(self.layers):
            leaf = gates[..., i, layer.present].detach().to(layer.out.get_buffer(MASK)).clone()
            layer.out._buffers[GATE] = leaf.requires_grad_(gradient)
            leaves.append(leaf)
        return leaves

    @contextmanager
    def differentiable(self, *, rows: int | None = None, open_masks: bool = False) -> Iterator[list[Tensor]]:
        """Gates that take a gradient, for as long as this lasts: (P,) of each layer, or (rows, P).

        A masked unit's gate has the value 0 and a gradient too, if `open_masks`: how much it is missed.
        """
        were_open, mask = self.are_open, self.mask()
        self.switch_on()
        values = mask.float() if rows is None else mask.float().expand(rows, *mask.shape)
        masks = [layer.out.get_buffer(MASK) for layer in self.layers]
        if open_masks:
            for layer in self.layers:
                layer.out._buffers[MASK] = torch.ones_like(layer.out.get_buffer(MASK))
        try:
            yield self.set(values, gradient=True)
        finally:
            for layer, own in zip(self.layers, masks, strict=True):
                layer.out._buffers[MASK] = own
            self.switch_off()
            if were_open:
                self.switch_on()


def _add(layer: Layer) -> None:
    ones = torch.ones(len(layer.present), device=layer.in_out.parameter.device)
    layer.out.register_buffer(MASK, ones)
    layer.out.register_buffer(GATE, ones.clone(), persistent=False)
    layer.out.register_forward_pre_hook(multiply_by_gates)


def _drop(layer: Layer) -> None:
    del layer.out._buffers[MASK], layer.out._buffers[GATE]
    layer.out._non_persistent_buffers_set.discard(GATE)
    hooks = layer.out._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is multiply_by_gates]:
        del hooks[key]
