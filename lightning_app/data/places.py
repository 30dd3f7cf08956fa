"""Where a source may lie: here, or where `hf:` says so."""

from __future__ import annotations

from pathlib import Path

from lightning_app.errors import InputError

DATASET = "hf:"


def is_dataset(path: str) -> bool:
    """Whether a source is a Hugging Face dataset: nothing else is ever looked for elsewhere."""
    return path.startswith(DATASET)


def missing(path: str) -> InputError:
    """What to say of a source that is not here."""
    name = path if path.count("/") <= 1 and "." not in path else "name"
    return InputError(
        f"no such file: {path}; check the path against the folder you run in ({Path.cwd()}), "
        f"or name a Hugging Face dataset as {DATASET}{name}"
    )
