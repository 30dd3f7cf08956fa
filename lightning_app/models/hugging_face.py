"""Models in one of Hugging Face's forms on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_app.data.adapter_folder import is_adapter
from lightning_app.data.gguf_file import gguf_files, is_gguf, is_named_gguf

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


def is_model(path: str | Path) -> bool:
    """A directory as `save_pretrained` writes it, one of adapters among them, or a GGUF file."""
    path = Path(path)
    return is_named_gguf(path) if path.is_file() else (path / CONFIG).is_file() or is_adapter(path)


def model_near(path: Path) -> str | None:
    """What was meant by a path that is not a model's: words for a message; None where no model is near.

    Args:
        path: that is there.
    """
    if path.is_dir():
        return gguf_within(path)
    if is_gguf(path):
        return "a GGUF file by another name: let it end in .gguf"
    if (path.parent / CONFIG).is_file():
        return f"a file of a Hugging Face directory: give the directory, {path.parent}"
    return None


def gguf_within(folder: Path) -> str | None:
    """Likewise of a folder whose model is a GGUF file that was not named."""
    found = gguf_files(folder)
    return f"a folder with {found[0].name}: give the file itself, {found[0]}" if found else None


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
