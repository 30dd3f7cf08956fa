"""How far a model follows the text that it reads."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_app.errors import InputError


@dataclass(frozen=True)
class AdaptationOptions:
    """How a model learns from what it has scored.

    Args:
        lr: how far a weight goes in a step, in units of its gradient's usual size; 0: it does not.
        decay: the part of the way back to the trained weights that each step goes.

    Raises:
        InputError: an option out of range.
    """

    lr: float = 3e-4
    decay: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.lr < 1:
            raise InputError(f"lr is {self.lr}; it must lie in [0, 1)")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay is {self.decay}; it must lie between 0 and 1")
