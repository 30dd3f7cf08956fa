"""Units that can be taken out of a Transformer: the attention heads, or the feed-forward neurons, of all layers.

A unit keeps its index of the whole model for good. It is alive, or dead: masked (it is there, and multiplied by 0), or
removed (its rows and columns are cut out of the matrices).

Shapes: L layers, N units of a layer at first, P of them that are there, B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_app.errors import InputError
from lightning_app.models.backbone import GATE, MASK, Backbone

Kind = Literal["heads", "neurons"]
PRESENT = "present_heads"  # buffer of an attention with a bias for each head


@dataclass(frozen=True)
class Part:
    """A parameter along one dimension of which units lie.

    Attributes:
        module: that has the parameter.
        name: weight or bias.
        dim: the dimension.
        index: (N, k) the k positions of each unit, in the whole parameter.
        reads: whether it reads what units say, and does not make it.
    """

    module: nn.Module
    name: str
    dim: int
    index: Tensor
    reads: bool = False

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
        out: the projection that reads what the units say; unit u's numbers are u k to u k + k - 1 of its input. With
            adapters it is what holds them.
        parts: all parameters in which units have rows or columns.
        counts: (module, attribute, how much of it is one unit's) of numbers that follow.
        n: N.
        biased: attention that is handed a bias for each head, see `cut_alibi`.
        present: units that are there, by rising index.
    """

    out: nn.Module
    parts: list[Part]
    counts: list[tuple[nn.Module, str, int]]
    n: int
    biased: nn.Module | None = None
    present: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.present = list(range(self.n))

    @property
    def in_out(self) -> Part:
        """Where units stand in the output projection's weight."""
        return next(part for part in self.parts if part.reads)

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


def multiply_by_gates(out: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of an output projection: its input (.., P k) times gate and mask of each unit.

    It reads the buffers of the module that it is called with, so a deep copy of a model has gates of its own.
    """
    x, scale = arguments[0], out.get_buffer(GATE) * out.get_buffer(MASK)
    n = scale.shape[-1]
    if scale.dim() == 2:  # (B, P): gates of each sequence
        scale = scale[:, None].expand(-1, x.numel() // x.shape[-1] // len(scale), n).reshape(*x.shape[:-1], n)
    return ((x.unflatten(-1, (n, x.shape[-1] // max(1, n))) * scale[..., None].to(x.dtype)).flatten(-2), *arguments[1:])


def cut_alibi(
    attention: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of an attention: alibi (B H, 1, S) of all heads -> of those that are there."""
    alibi, B = kwargs.get("alibi"), arguments[0].shape[0]
    if not isinstance(alibi, Tensor):
        return None
    cut = alibi.unflatten(0, (B, alibi.shape[0] // B))[:, attention.get_buffer(PRESENT)].flatten(0, 1)
    return arguments, {**kwargs, "alibi": cut}


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
        self._gates_on = False

    @property
    def shape(self) -> tuple[int, int]:
        """(L, N) of the whole model, whatever is left of it."""
        return len(self.layers), self.layers[0].n

    @property
    def mask(self) -> Tensor:
        """(L, N) bool, True where a unit is alive."""
        mask = torch.zeros(self.shape, dtype=torch.bool)
        for row, layer in zip(mask, self.layers, strict=True):
            row[layer.present] = layer.out.get_buffer(MASK).cpu() != 0 if layer.gated else True
        return mask

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
        of = self.layers[layer]
        place, found = of.present.index(unit), []
        for part in of.parts:
            at = part.positions(of.present)[place]

            def take(x: Tensor, part: Part = part, at: Tensor = at) -> Tensor:
                return x.detach().index_select(part.dim, at.to(x.device)).cpu()

            state = {name: take(x) for name, x in state_like(optimizer, part.parameter).items()}
            found.append(Slice(take(part.parameter), state))
        return found

    # Masks and gates

    def set_mask(self, mask: Tensor) -> None:
        """(L, N) bool: what is False is multiplied by 0 from now on. Removed units stay dead whatever it says."""
        for row, layer in zip(mask, self.layers, strict=True):
            there = row[layer.present]
            if not bool(there.all()) and not layer.gated:
                self._add_gates(layer)
            if layer.gated:
                layer.out.get_buffer(MASK).copy_(there.to(layer.out.get_buffer(MASK)))
        self._drop_gates_without_effect()

    def _add_gates(self, layer: Layer) -> None:
        weight, n = layer.in_out.parameter, len(layer.present)
        ones = torch.ones(n, device=weight.device)
        layer.out.register_buffer(MASK, ones)
        layer.out.register_buffer(GATE, ones.clone(), persistent=False)
        layer.out.register_forward_pre_hook(multiply_by_gates)

    def _drop_gates_without_effect(self) -> None:
        """So that a model of which nothing is masked is as fast as a plain one."""
        for layer in self.layers:
            if layer.gated and not self._gates_on and bool(layer.out.get_buffer(MASK).all()):
                del layer.out._buffers[MASK], layer.out._buffers[GATE]
                layer.out._non_persistent_buffers_set.discard(GATE)
                hooks = layer.out._forward_pre_hooks
                for key in [key for key, hook in hooks.items() if hook is multiply_by_gates]:
                    del hooks[key]

    def open_gates(self) -> None:
        """Have a gate of 1 at each unit, until `close_gates`."""
        self._gates_on = True
        for layer in self.layers:
            if not layer.gated:
                self._add_gates(layer)

    def close_gates(self) -> None:
        """All gates are 1 again, and gone where nothing is masked."""
        self._gates_on = False
        for layer in self.layers:
            layer.out._buffers[GATE] = torch.ones_like(layer.out.get_buffer(MASK))
        self._drop_gates_without_effect()

    def set_gates(self, gates: Tensor, *, gradient: bool = False) -> list[Tensor]:
        """Give open gates their values: (L, N), or (B, L, N) for each sequence of a batch.

        Returns: for each layer the leaf (P,) or (B, P), whose gradient is dL/dgate if asked for.
        """
        leaves = []
        for i, layer in enumerate(self.layers):
            leaf = gates[..., i, layer.present].detach().to(layer.out.get_buffer(MASK)).clone()
            layer.out._buffers[GATE] = leaf.requires_grad_(gradient)
            leaves.append(leaf)
        return leaves

    def from_leaves(self, leaves: Iterable[Tensor], *, missing: float = 0.0) -> Tensor:
        """(.., P) numbers of each layer -> (.., L, N) float64 on the CPU; `missing` where a unit was removed."""
        rows = []
        for numbers, layer in zip(leaves, self.layers, strict=True):
            row = torch.full((*numbers.shape[:-1], layer.n), missing, dtype=torch.float64)
            row[..., layer.present] = numbers.detach().double().cpu()
            rows.append(row)
        return torch.stack(rows, dim=-2)

    @contextmanager
    def gates(self, *, rows: int | None = None, open_masks: bool = False) -> Iterator[list[Tensor]]:
        """Gates that take a gradient, for as long as this lasts: (P,) of each layer, or (rows, P).

        A masked unit's gate has the value 0 and a gradient too, if `open_masks`: how much it is missed.
        """
        was_on, mask = self._gates_on, self.mask
        self.open_gates()
        values = mask.float() if rows is None else mask.float().expand(rows, *mask.shape)
        masks = [layer.out.get_buffer(MASK) for layer in self.layers]
        if open_masks:
            for layer in self.layers:
                layer.out._buffers[MASK] = torch.ones_like(layer.out.get_buffer(MASK))
        try:
            yield self.set_gates(values, gradient=True)
        finally:
            for layer, own in zip(self.layers, masks, strict=True):
                layer.out._buffers[MASK] = own
            self.close_gates()
            if was_on:
                self.open_gates()

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
        self._drop_gates_without_effect()

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
        self._drop_gates_without_effect()

    def _new(self, i: int, unit: int) -> list[Slice]:
        """As spread as the layer's other weights; biases and what the output projection reads are 0.

        Drawn by a generator of its own, so that all ranks draw the same.
        """
        layer, generator, slices = self.layers[i], torch.Generator().manual_seed(i * self.shape[1] + unit), []
        for part in layer.parts:
            parameter = part.parameter.detach()
            shape = list(parameter.shape)
            shape[part.dim] = part.index.shape[1]
            fresh = torch.zeros(shape, dtype=parameter.dtype)
            if not part.reads and parameter.dim() > 1:
                spread = float(parameter.float().std()) if parameter.numel() > 1 else 0.02
                fresh.normal_(std=spread, generator=generator)
            slices.append(Slice(fresh, {}))
        return slices

    def _move(self, i: int, present: list[int], joining: dict[int, list[Slice]], optimizer: Optimizer | None) -> None:
        """Rebuild a layer's parameters for the units of `present`; those that were not there get their slices."""
        layer, before = self.layers[i], self.layers[i].present
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
        self._follow(layer, present)

    def _follow(self, layer: Layer, present: list[int]) -> None:
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
        mask = self.mask
        return {
            "shape": list(self.shape),
            "present": [list(layer.present) for layer in self.layers],
            "masked": [[u for u in layer.present if not mask[i, u]] for i, layer in enumerate(self.layers)],
        }

    def set_layout(self, layout: dict[str, Any], optimizer: Optimizer | None = None) -> None:
        """Bring the model into this shape; the values of what joins are to be loaded afterwards.

        Raises:
            InputError: it is the layout of a model of another shape.
        """
        if list(layout["shape"]) != list(self.shape):
            raise InputError(
                f"the checkpoint's model has {layout['shape'][0]} layers of {layout['shape'][1]} {self.kind}, this one "
                f"{self.shape[0]} of {self.shape[1]}: give the options that the checkpoint was trained with"
            )
        mask = torch.ones(self.shape, dtype=torch.bool)
        for i, present in enumerate(layout["present"]):
            joining = {unit: self._new(i, unit) for unit in present if unit not in self.layers[i].present}
            self._move(i, list(present), joining, optimizer)
            mask[i, layout["masked"][i]] = False
        self.set_mask(mask)

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
        if self._gates_on != others._gates_on:
            (self.open_gates if others._gates_on else self.close_gates)()

    def kept_state(self) -> list[dict[str, Any]]:
        """`kept` in plain types and tensors."""
        return [
            {"layer": layer, "unit": unit, "parts": [{"value": s.value, "state": s.state} for s in slices]}
            for (layer, unit), slices in self.kept.items()
        ]

    def load_kept_state(self, state: list[dict[str, Any]]) -> None:
        """Take what `kept_state` gave."""
        self.kept = {
            (one["layer"], one["unit"]): [Slice(part["value"], part["state"]) for part in one["parts"]] for one in state
        }


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
