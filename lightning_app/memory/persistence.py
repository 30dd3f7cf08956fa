"""What a memory's state must be to be loaded, copied and moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.slots import BLANK, Slots


def check_state(state_dict: Mapping[str, Any], buffers: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses the state of a memory of another size, and one whose ids contradict each other.

    Args:
        prefix: of the names in `state_dict`; what is missing there is not looked at.
    """
    for name in BLANK:
        found, wanted = state_dict.get(prefix + name), buffers[name]
        if found is not None and found.shape != wanted.shape:
            shapes = f"{tuple(found.shape)} in the checkpoint and {tuple(wanted.shape)} here"
            raise InputError(f"{prefix}{name} is {shapes}: memory_size, memory_dim and span_length must be the same")
    Slots.read(state_dict.get(prefix + "slot_ids", buffers["slot_ids"]))


def keeping_types(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of `nn.Module._apply`, moving between devices alone: `.half()` and the like leave all types."""

    def moved(tensor: Tensor) -> Tensor:
        result = move(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return moved
