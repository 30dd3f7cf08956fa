"""Whether a path holds a model in one of Hugging Face's forms."""

from __future__ import annotations

from pathlib import Path

MAGIC = b"GGUF"  # the first bytes of such a file


def is_model(path: str | Path) -> bool:
    """A directory that `from_pretrained` reads, or a GGUF file, whatever its name."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    return (path / "config.json").is_file()
