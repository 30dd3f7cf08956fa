"""Models in one of Hugging Face's forms on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GGUF = ".gguf"


def is_model(path: str | Path) -> bool:
    """A directory as `save_pretrained` writes it, or a GGUF file or the directory of one."""
    path = Path(path)
    if path.is_file():
        return path.suffix == GGUF
    return (path / "config.json").is_file() or any(path.glob(f"*{GGUF}"))


@contextmanager
def without_bars() -> Iterator[None]:
    """The library draws a bar for each file that it reads or writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
