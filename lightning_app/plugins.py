"""The table of ideas, in plain strings: what each adds to the core, which looks here when a name is asked for.

Nothing else knows them. `module:object` is imported when it is needed, and not before.
"""

from __future__ import annotations

import importlib
import importlib.util
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
        configurable: modules of further classes that a config may name, such as callbacks.
        shape: of the function that brings a backbone into a layout, if the idea cuts any.
        follow: of the function that gives a copy of a backbone the shape that this has now.
        commands: `module:object` of the functions that carry out its commands, by their names.
    """

    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    configurable: tuple[str, ...] = ()
    shape: str | None = None
    follow: str | None = None
    commands: Mapping[str, str] = field(default_factory=dict)


CALLBACKS = "lightning_app.training.callbacks"
CONFIGURABLE = (  # of the core, see `Idea.configurable`
    "lightning_app.models.decoder",
    "lightning_app.models.pretrained",
    "lightning_app.training.compositions",
    "lightning_app.training.schedulers",
    *(f"{CALLBACKS}.{name}" for name in ("averaging", "dashboard", "predictions", "progress", "projector")),
    *(f"{CALLBACKS}.{name}" for name in ("random_state", "run_log", "samples", "throughput")),
)
READERS = "lightning_app.memory.readers"
IDEAS = (
    Idea(
        "memory",
        parts={
            "MemoryLM": "lightning_app.memory.model:MemoryLM",
            "Memory": "lightning_app.memory.extension:Memory",
            "VardaGPT": "lightning_app.memory.extension:VardaGPT",
            "AttentionReader": f"{READERS}.attention:AttentionReader",
            "ConcatReader": f"{READERS}.concat:ConcatReader",
            "CacheReader": f"{READERS}.distribution:CacheReader",
            "KNNReader": f"{READERS}.distribution:KNNReader",
            "TrimeReader": f"{READERS}.distribution:TrimeReader",
        },
        commands={"memory": "lightning_app.memory.tools.command:command"},
    ),
    Idea(
        "art",
        parts={
            "ARTGPT2": "lightning_app.art.extension:ARTGPT2",
            "ARTRegularizer": "lightning_app.art.extension:ARTRegularizer",
        },
        commands={"categories": "lightning_app.art.categories:command"},
    ),
    Idea(
        "plasticity",
        configurable=("lightning_app.plasticity.schedule", "lightning_app.plasticity.controller.callback"),
        shape="lightning_app.plasticity.units:take_layout",
        follow="lightning_app.plasticity.units:follow",
    ),
)


def import_all() -> None:
    """Import what a config may name, so that it is found by the name of its class alone."""
    for module in CONFIGURABLE:
        importlib.import_module(module)
    for idea in IDEAS:
        for module in dict.fromkeys([*(place.partition(":")[0] for place in idea.parts.values()), *idea.configurable]):
            if importlib.util.find_spec(f"lightning_app.{idea.name}") is not None:
                importlib.import_module(module)


def load(place: str, *, idea: str | None = None) -> Any:
    """The object at `module:object`.

    Raises:
        InputError: the folder of the idea, if it is one's, is gone.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if idea is None or error.name is None or not module.startswith(error.name):
            raise
        raise InputError(f"the idea {idea!r} is not here ({module} is missing): put its folder back") from error
