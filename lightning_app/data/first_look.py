"""Rows of files, read once before a model is: a bad one is named before minutes of loading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_app.data.corpus import read_documents
from lightning_app.data.places import is_dataset
from lightning_app.data.rows import has_rows
from lightning_app.data.sources import Source, as_sources

# What each command reads; predict takes another split where it has none of its own.
READ = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict", "test", "val")}


def look_at_rows(options: Mapping[str, Any], command: str) -> None:
    """Read the rows of what a command reads, without tokens; a text or a dataset is left for later.

    Args:
        options: of the data, as a config has them.
        command: such as "fit".

    Raises:
        InputError: see `read_documents`.
    """
    given = [options[name] for name in READ.get(command, ()) if options.get(name) is not None]
    for source in _sources(given[:1] if command == "predict" else given):
        if has_rows(Path(source.path)) and not is_dataset(source.path):
            for _ in read_documents(source.path, text_field=source.text_field):
                pass


def _sources(given: Iterable[Any]) -> Iterable[Source]:
    for value in given:
        sources = as_sources(value)
        yield from sources if isinstance(sources, list) else [sources]
