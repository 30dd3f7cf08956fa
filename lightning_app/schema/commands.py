"""`python main.py schema`: its options, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path


def schema(*, output: Path | None = None) -> None:
    """Write the JSON schema of a run's YAML, for editors and for what is checked before a run.

    Args:
        output: a file; without it the terminal.
    """
    from lightning_app.schema.command import write

    write(output)
