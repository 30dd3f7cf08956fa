"""`python main.py categories`: its options, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from lightning_app.errors import InputError
from lightning_app.training.command_options import CheckpointOptions


def categories(*, model: CheckpointOptions, output: Path | None = None, limit: int = 30) -> None:
    """Print what an ART network has sorted its inputs into, and write it as a page.

    Args:
        output: an HTML page with all categories is written there.
        limit: how many categories the table shows, the largest first.
    """
    if limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    from lightning_app.art.categories import show

    show(model, output=output, limit=limit)
