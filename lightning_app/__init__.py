"""lightning_app: one PyTorch Lightning harness for experiments with GPT-like language models.

In Python, `fit` trains and `load` brings a model back; see `lightning_app.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_app.api import fit, load

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    """`fit` and `load`: imported when they are asked for, as the command line answers before torch is there."""
    if name not in ("fit", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_app import api

    return getattr(api, name)
