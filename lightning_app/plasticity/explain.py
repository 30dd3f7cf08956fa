"""What is left of a pruned model, in plain types."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_app.plasticity.kinds import cut_units
from lightning_app.training.module import LanguageModule


def explain(module: LanguageModule, *_: Any, **__: Any) -> dict[str, Any]:
    """`heads`: those and the neurons that are left, see `_heads`; nothing of a model that is whole."""
    return {"heads": _heads(module)} if cut_units(module.backbone) else {}


def _heads(module: LanguageModule) -> dict[str, Any]:
    """Which attention heads are alive and which masked (there, but multiplied by 0; the others were removed), by layer;
    of the feed-forward neurons how many."""
    made, found = {units.kind: units for units in cut_units(module.backbone)}, dict[str, Any]()
    if heads := made.get("heads"):
        found |= {"attention": heads.mask.tolist(), "masked": _masked(heads.mask, heads.present).tolist()}
    if neurons := made.get("neurons"):
        layers, n = neurons.shape
        masked = _masked(neurons.mask, neurons.present)
        found["neurons"] = {"alive": neurons.mask.sum(1).tolist(), "masked": masked.sum(1).tolist(), "of": [n] * layers}
    return found


def _masked(alive: Tensor, present: Tensor) -> Tensor:
    return present & ~alive
