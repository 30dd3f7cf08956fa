"""Units that can be taken out of a Transformer: the attention heads, or the feed-forward neurons, of all layers.

A unit keeps its index of the whole model for good. It is alive, or dead: masked (it is there, and multiplied by 0), or
removed (its rows and columns are cut out of the matrices).

Shapes: L layers, N units of a layer at first, P of them that are there, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.plasticity.gates import Gates
from lightning_app.plasticity.layout import (
    Kept,
    Kind,
    Layer,
    Slice,
    check_shape,
    kept_from,
    kept_state,
    layout_of,
    mask_of,
)
from lightning_app.plasticity.surgery import move, new_slices, slice_of, state_like


class Units:
    """All units of one kind. Masks, gates, removal and regrowth.

    Args:
        backbone: whose `attention_width` follows, where units are heads.
        layers: see `Layer`.
        kind: what the units are.

    Attributes:
        kept: what was cut out, on the CPU, for `regrow(how="undo")`.

    Raises:
        InputError: layers that differ in their number of units.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[Layer], kind: Kind):
        if len({layer.n for layer in layers}) != 1:
            raise InputError(f"the layers have {[layer.n for layer in layers]} {kind}: they must be equally many")
        self.backbone, self.layers, self.kind = backbone, list(layers), kind
        self.kept: Kept = {}
        self._gates = Gates(self.layers)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, N) of the whole model, whatever is left of it."""
        return len(self.layers), self.layers[0].n

    @property
    def mask(self) -> Tensor:
        """(L, N) bool, True where a unit is alive."""
        return self._gates.mask()

    @property
    def present(self) -> Tensor:
        """(L, N) bool, True where a unit has not been removed."""
        there = torch.zeros(self.shape, dtype=torch.bool)
        for row, layer in zip(there, self.layers, strict=True):
            row[layer.present] = True
        return there

    @property
    def sparsity(self) -> float:
        """Share of the units that are dead."""
        return 1 - float(self.mask.float().mean())

    def slice_of(self, layer: int, unit: int, optimizer: Optimizer | None = None) -> list[Slice]:
        """Copies, on the CPU, of what each part has of a unit that is there."""
        return slice_of(self.layers[layer], unit, optimizer)

    def from_leaves(self, leaves: Iterable[Tensor], *, missing: float = 0.0) -> Tensor:
        """(.., P) numbers of each layer -> (.., L, N) float64 on the CPU; `missing` where a unit was removed."""
        rows = []
        for numbers, layer in zip(leaves, self.layers, strict=True):
            row = torch.full((*numbers.shape[:-1], layer.n), missing, dtype=torch.float64)
            row[..., layer.present] = numbers.detach().double().cpu()
            rows.append(row)
        return torch.stack(rows, dim=-2)

    # Masks and gates, see `Gates`

    def set_mask(self, mask: Tensor) -> None:
        """(L, N) bool: what is False is multiplied by 0 from now on. Removed units stay dead whatever it says."""
        self._gates.set_mask(mask)

    def open_gates(self) -> None:
        """Have a gate of 1 at each unit, until `close_gates`."""
        self._gates.switch_on()

    def close_gates(self) -> None:
        """All gates are 1 again, and gone where nothing is masked."""
        self._gates.switch_off()

    def set_gates(self, gates: Tensor, *, gradient: bool = False) -> list[Tensor]:
        """Give open gates their values (L, N) or (B, L, N) -> the leaf of each layer, (P,) or (B, P)."""
        return self._gates.set(gates, gradient=gradient)

    def gates(self, *, rows: int | None = None, open_masks: bool = False) -> AbstractContextManager[list[Tensor]]:
        """Gates that take a gradient, see `Gates.differentiable`."""
        return self._gates.differentiable(rows=rows, open_masks=open_masks)

    # Surgery

    def remove(self, dead: Tensor, optimizer: Optimizer | None = None, *, keep: bool = True) -> None:
        """Cut units out: (L, N) bool. Those that are gone already stay so.

        Of a layer that loses all, the first of them stays, masked: few families can compute with none.

        Args:
            optimizer: whose parameters and state follow.
            keep: remember what is cut out, on the CPU.

        Raises:
            InputError: the optimizer's state cannot be cut; nothing has been changed then.
        """
        for part in [part for layer in self.layers for part in layer.parts]:
            state_like(optimizer, part.parameter)
        if keep:  # a masked unit's are of when it was masked
            new = {(i, u) for i, u in (dead & self.present).nonzero().tolist()} - self.kept.keys()
            self.kept |= {unit: self.slice_of(*unit, optimizer) for unit in sorted(new)}
        self.set_mask(self.mask & ~dead)
        for i, layer in enumerate(self.layers):
            left = [unit for unit in layer.present if not dead[i, unit]]
            self._move(i, left or layer.present[:1], {}, optimizer)
        self._gates.drop_without_effect()

    def keep(self, dead: Tensor, optimizer: Optimizer | None = None) -> None:
        """Remember the weights and the optimizer's state of units that are about to be masked: (L, N) bool."""
        for i, unit in dead.nonzero().tolist():
            self.kept[i, unit] = self.slice_of(i, unit, optimizer)

    def regrow(
        self,
        layer: int,
        unit: int,
        how: Literal["undo", "new"] | list[Slice] = "undo",
        optimizer: Optimizer | None = None,
    ) -> None:
        """Bring a dead unit back to life.

        Args:
            how: `undo` has the weights and the optimizer's state of when it died, bit for bit; `new` random weights and
                zeros in the output projection, so that the model computes what it did; or what each part gets.

        Raises:
            InputError: it is alive, or what it had was not kept.
        """
        where, of = f"{self.kind[:-1]} {unit} of layer {layer}", self.layers[layer]
        if self.mask[layer, unit]:
            raise InputError(f"{where} is alive: there is nothing to regrow")
        if how == "undo" and (layer, unit) not in self.kept:
            raise InputError(f"{where} was not kept when it was removed: regrow it as new, or keep what is removed")
        kept = self.kept.pop((layer, unit), [])
        slices = kept if how == "undo" else self._new(layer, unit) if how == "new" else how
        present = [u for u in of.present if u != unit]
        self._move(layer, present, {}, optimizer)
        self._move(layer, sorted([*present, unit]), {unit: slices}, optimizer)
        self._gates.drop_without_effect()

    def _new(self, layer: int, unit: int) -> list[Slice]:
        return new_slices(self.layers[layer], seed=layer * self.shape[1] + unit)

    def _move(self, i: int, present: list[int], joining: dict[int, list[Slice]], optimizer: Optimizer | None) -> None:
        move(self.layers[i], present, joining, optimizer)
        self._after_surgery()

    def _after_surgery(self) -> None:
        """For what else depends on the units that are there."""

    # Layouts: what a checkpoint needs to know

    @property
    def is_whole(self) -> bool:
        """Whether no unit was removed and none is masked."""
        return bool(self.mask.all())

    def layout(self) -> dict[str, Any]:
        """Which units are there and which of them are masked, in plain types."""
        return layout_of(self.layers, self.mask)

    def set_layout(self, layout: dict[str, Any], optimizer: Optimizer | None = None) -> None:
        """Bring the model into this shape; the values of what joins are to be loaded afterwards.

        Raises:
            InputError: it is the layout of a model of another shape.
        """
        check_shape(layout, self.shape, self.kind)
        for i, present in enumerate(layout["present"]):
            joining = {unit: self._new(i, unit) for unit in present if unit not in self.layers[i].present}
            self._move(i, list(present), joining, optimizer)
        self.set_mask(mask_of(layout))

    @property
    def removed(self) -> int:
        return int((~self.present).sum())

    def fold_mask(self) -> None:
        """Write zeros for what is masked, so that nothing has to be multiplied by 0 any more."""
        self._write_zeros(self.present & ~self.mask)
        self.set_mask(torch.ones(self.shape, dtype=torch.bool))

    def fill_removed(self) -> None:
        """Bring back, as zeros, what was removed: the model computes what it did, in the shape that it had at first."""
        removed, everything = ~self.present, list(range(self.shape[1]))
        nothing: list[list[int]] = [[] for _ in self.layers]
        self.set_layout({"shape": self.shape, "present": [everything for _ in self.layers], "masked": nothing})
        self._write_zeros(removed)

    @torch.no_grad()
    def _write_zeros(self, dead: Tensor) -> None:
        """(L, N) bool, of units that are there: all of their weights become 0."""
        for layer, row in zip(self.layers, dead, strict=True):
            places = [layer.present.index(unit) for unit in row.nonzero()[:, 0].tolist()]
            for part in layer.parts:
                at = part.positions(layer.present)[places].flatten()
                part.parameter.index_fill_(part.dim, at.to(part.parameter.device), 0.0)

    def follow(self, others: Units) -> None:
        """Take the layout and the gates of the same units of another model, of which this one is a copy that has gone
        its own way. What is alive there and dead here gets the weights that it has there."""
        for i, unit in (others.mask & ~self.mask).nonzero().tolist():
            self.regrow(i, unit, others.slice_of(i, unit))
        if self.layout() != others.layout():
            self.set_layout(others.layout())
        if self._gates.are_open != others._gates.are_open:
            (self.open_gates if others._gates.are_open else self.close_gates)()

    def kept_state(self) -> list[dict[str, Any]]:
        """`kept` in plain types and tensors."""
        return kept_state(self.kept)

    def load_kept_state(self, state: list[dict[str, Any]]) -> None:
        """Take what `kept_state` gave."""
        self.kept = kept_from(state)
