"""AttentionHeads and Neurons: the units of any backbone of this project, whatever its family.

Shapes: L layers, H heads, M neurons, B batch, T positions, R sampled positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.modes import evaluated, uncompiled
from lightning_app.plasticity.entropy import attention_entropy
from lightning_app.plasticity.families import ATTENTION, FEED_FORWARD, attention_probabilities, find_layers
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.units import Units

REMEDY = "write a layout for it in lightning_app/plasticity/families.py (a class with `match`, added to the list there)"


class AttentionHeads(Units):
    """The attention heads of a backbone; where query heads share keys and values, each group of them is a unit.

    Make one for each model, before anything is removed: it remembers what was.

    Raises:
        InputError: a family whose projections are laid out in a way that no layout knows.
    """

    def __init__(self, backbone: Backbone):
        model = backbone.core
        found = find_layers(model, ATTENTION)
        width = sum(layer.in_out.parameter.shape[layer.in_out.dim] for _, layer in found)
        if width != model.attention_width:
            raise InputError(
                f"{_name(model)} shows attention heads of width {width} in all, and computes with "
                f"{model.attention_width}: {REMEDY}"
            )
        super().__init__(model, [layer for _, layer in found], "heads")
        self.attention = [module for module, _ in found]

    def _after_surgery(self) -> None:
        widths = [layer.in_out.parameter.shape[layer.in_out.dim] for layer in self.layers]
        self.backbone.attention_width = sum(widths)

    @torch.no_grad()
    def attention_probs(self, ids: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """(B, T) ids -> (B, H, R, T) of each layer, for the heads that are there, at R positions; None: at all T."""
        with uncompiled(), evaluated(self.backbone), self._recorded(positions) as found:
            self.backbone.states(ids)
        return found

    @torch.no_grad()
    def entropy(self, ids: Tensor, *, rows: int | None = 16, seed: int = 0, normalised: bool = False) -> Tensor:
        """(B, T) ids -> (L, H) float64: entropy of attention in nats, NaN where a head was removed.

        Args:
            rows: R positions, the same in all layers, whose attention is looked at; None: all.
            normalised: divided by the log of the number of positions that can be seen.
        """
        T = min(ids.shape[1], self.backbone.max_length or ids.shape[1])
        ids = ids[:, : ids.shape[1] // T * T].reshape(-1, T)  # a block of isolated segments is longer than the model
        positions = torch.arange(T)
        if rows is not None and rows < T - 1:  # the first position sees itself alone
            drawn = torch.randperm(T - 1, generator=torch.Generator().manual_seed(seed))[:rows]
            positions = (1 + drawn).sort().values
        found = self.attention_probs(ids, positions)
        of_heads = [attention_entropy(p, visible=positions.to(p.device) + 1, normalised=normalised) for p in found]
        groups = [x.view(len(layer.present), -1).mean(1) for x, layer in zip(of_heads, self.layers, strict=True)]
        return self.from_leaves(groups, missing=torch.nan)

    @contextmanager
    def _recorded(self, positions: Tensor | None = None) -> Iterator[list[Tensor]]:
        """The probabilities of a forward, in the order of the layers; of the given rows alone."""
        found: list[Tensor] = []

        def hook(module: nn.Module, arguments: Any, kwargs: Any, output: Any) -> None:
            probs = attention_probabilities(module, arguments, kwargs, output)
            found.append(probs if positions is None else probs[:, :, positions.to(probs.device)])

        hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in self.attention]
        try:
            with self.backbone.attention_visible():
                yield found
        finally:
            for one in hooks:
                one.remove()


class Neurons(Units):
    """The neurons of all feed-forward layers of a backbone.

    Raises:
        InputError: a family whose feed-forward layers are laid out in a way that no layout knows.
    """

    def __init__(self, backbone: Backbone):
        model = backbone.core
        found = [layer for _, layer in find_layers(model, FEED_FORWARD)]
        layers = len(find_layers(model, ATTENTION))
        if len(found) != layers or not found:
            raise InputError(
                f"{_name(model)} shows {len(found)} feed-forward layers, and {layers} of attention: {REMEDY}"
            )
        super().__init__(model, found, "neurons")


class HasBackbones(Protocol):
    """A LanguageModule, for what is known of it here."""

    def backbones(self) -> list[Backbone]: ...


UNITS: dict[Kind, Callable[[Backbone], Units]] = {"heads": AttentionHeads, "neurons": Neurons}


def units_of(backbone: Backbone, kind: Kind) -> Units:
    """The units of a model, made when they are first asked for. They belong to the model: a deep copy has its own."""
    model = backbone.core
    if kind not in model.units:
        model.units[kind] = UNITS[kind](model)
    return cast(Units, model.units[kind])


def units_in(module: HasBackbones, kind: Kind) -> list[Units]:
    """What can be pruned in a LanguageModule: of its model, then of the copies that it keeps of it.

    Raises:
        InputError: a family that does not show its heads or neurons.
    """
    return [units_of(model, kind) for model in module.backbones()]


def follow(copy: Backbone, original: Backbone) -> None:
    """Give a copy the heads, neurons and gates of the model that it was made from."""
    for kind, units in original.core.units.items():
        units_of(copy, cast(Kind, kind)).follow(cast(Units, units))


def cut_units(backbone: Backbone) -> list[Units]:
    """The units of each kind of which something was removed or is masked."""
    return [cast(Units, units) for units in backbone.core.units.values() if not units.is_whole]


def take_layout(backbone: Backbone, layouts: dict[Kind, Any]) -> None:
    """Bring a backbone into a shape, see `Units.set_layout`.

    Also one whose weights have no values yet: which units there are is known on the CPU all the same.
    """
    with torch.device("cpu"):
        for kind, layout in layouts.items():
            units_of(backbone, kind).set_layout(layout)


def _name(model: Backbone) -> str:
    family = model.config().get("config", {}).get("model_type")
    return f"the family {family!r}" if family else type(model).__name__
