"""Which precisions a module can train in: those that would train wrongly are refused before the first step."""

from __future__ import annotations

import lightning as L

from lightning_app.errors import InputError
from lightning_app.models.backbone import GATE, MASK


def check_precision(module: L.LightningModule, precision: str) -> None:
    """Look at what a fit in a half precision would cast.

    Raises:
        InputError: `16-true`; or `bf16-true` with a state that training averages: it would come to a stand, because
            bfloat16 has 8 bits.
    """
    if precision == "16-true":
        raise InputError(
            "trainer.precision is 16-true: without loss scaling, gradients and Adam's second moments underflow in "
            "float16; use bf16-true, bf16-mixed, or 16-mixed on a GPU"
        )
    states = sorted(averaging_states(module)) if precision == "bf16-true" else []
    if states:
        raise InputError(
            f"trainer.precision is {precision}, which would cast {len(states)} states that training averages, such as "
            f"{states[0]}: use bf16-mixed"
        )


def averaging_states(module: L.LightningModule) -> set[str]:
    """Names of the buffers of a checkpoint that hold fractions, masks of units and what keeps its types aside."""
    parts = [(name, part) for name, part in module.named_modules() if not getattr(part, "keeps_types", False)]
    buffers = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in parts
        for name, buffer in part.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    return {name for name in buffers & module.state_dict().keys() if name.rpartition(".")[2] not in (MASK, GATE)}
