"""What the Trainer is given: loader, checkpoint writer, schedule, allocator."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`lightning_app.training.WarmupCosine`, as configs of before name it: without torch until it is asked for."""
    if name != "WarmupCosine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_app.training.schedulers import WarmupCosine

    return WarmupCosine
