"""The table of ideas, in plain strings: what each adds to the core, which looks here when a name is asked for.

Nothing else knows them. `module:object` is imported when it is needed, and not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_app.errors import InputError


@dataclass(frozen=True)
class Idea:
    """One idea.

    Attributes:
        name: of its folder.
        parts: `module:object` of the classes that a description may name, by their registered names.
        shape: of the function that brings a backbone into a layout, if the idea cuts any.
    """

    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    shape: str | None = None


READERS = "lightning_app.models.readers"
IDEAS = (
    Idea(
        "memory",
        parts={
            "MemoryLM": "lightning_app.models.memory_lm:MemoryLM",
            "VardaGPT": "lightning_app.modules.varda_gpt:VardaGPT",
            "AttentionReader": f"{READERS}.attention:AttentionReader",
            "ConcatReader": f"{READERS}.concat:ConcatReader",
            "CacheReader": f"{READERS}.distribution:CacheReader",
            "KNNReader": f"{READERS}.distribution:KNNReader",
            "TrimeReader": f"{READERS}.distribution:TrimeReader",
        },
    ),
    Idea(
        "art",
        parts={
            "ARTGPT2": "lightning_app.modules.art_gpt2:ARTGPT2",
            "ARTRegularizer": "lightning_app.modules.art_gpt2:ARTRegularizer",
        },
    ),
    Idea("plasticity", shape="lightning_app.models.heads.attention_heads:take_layout"),
)


def load(place: str, *, idea: str) -> Any:
    """The object at `module:object`.

    Raises:
        InputError: the idea's folder is gone.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise InputError(f"the idea {idea!r} is not here ({module} is missing): put its folder back") from error
