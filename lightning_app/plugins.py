"""The table of ideas, in plain strings: what each adds to the core, which looks here when a name is asked for.

Nothing else knows them. `module:object` is imported when it is needed, and not before.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_app.errors import InputError


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        group: of `commands.GROUPS`.
        does: what, in one line.
        place: `module:object` of the typed function that carries it out (see `command_line`); None: its parts do, or
            LightningCLI.
        parts: places of the functions of `COMMAND PART`, by part.
        needs: packages of an extra, without which it does nothing.
    """

    group: str
    does: str
    place: str | None = None
    needs: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Idea:
    """One idea.

    Attributes:
        name: of its folder.
        parts: `module:object` of the classes that a description may name, by their registered names.
        configurable: modules of further classes that a config may name, such as callbacks.
        shape: of the function that brings a backbone into a layout, if the idea cuts any.
        follow: of the function that gives a copy of a backbone the shape that this has now.
        commands: its own, by their names.
        events: of the kinds of events that it logs. Neither these nor the sections import torch.
        sections: of the sections of a run's page.
        shown_by: names of the events that call for these sections.
        explain: of the function that says what its parts do with a text; see `serving.explain`.
        close: of the function that draws its page into a run's folder when a fit has ended; see `closing`.
        card: of the function that says in one line what a model holds of it ("": nothing), for the model's card.
        packages: that an exported model needs for it.
    """

    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    configurable: tuple[str, ...] = ()
    shape: str | None = None
    follow: str | None = None
    commands: Mapping[str, Command] = field(default_factory=dict)
    events: str | None = None
    sections: str | None = None
    shown_by: tuple[str, ...] = ()
    explain: str | None = None
    close: str | None = None
    card: str | None = None
    packages: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        spec = importlib.util.find_spec(f"lightning_app.{self.name}")
        return spec is not None and spec.origin is not None  # a folder without files is a namespace, of no origin

    def load(self, place: str) -> Any:
        """The object at `module:object`, which is of this idea.

        Raises:
            InputError: its folder is gone.
        """
        if not self.is_here:
            raise InputError(self.missing)
        return load(place)

    @property
    def missing(self) -> str:
        return f"the idea {self.name!r} is not here: put its folder lightning_app/{self.name} back"


CALLBACKS = "lightning_app.training.callbacks"
CONFIGURABLE = (  # of the core, see `Idea.configurable`
    "lightning_app.models.decoder",
    "lightning_app.models.pretrained",
    "lightning_app.training.compositions",
    "lightning_app.training.schedulers",
    *(f"{CALLBACKS}.{name}" for name in ("averaging", "dashboard", "dynamic_evaluation", "predictions", "progress")),
    *(f"{CALLBACKS}.{name}" for name in ("projector", "exact_resume", "run_log", "samples", "throughput")),
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
            "GatedMixture": f"{READERS}.mixture:GatedMixture",
            "KNNReader": f"{READERS}.distribution:KNNReader",
            "NGramReader": f"{READERS}.ngram:NGramReader",
            "PointerReader": f"{READERS}.pointer:PointerReader",
            "PromptReader": f"{READERS}.prompt:PromptReader",
            "TrimeReader": f"{READERS}.distribution:TrimeReader",
        },
        commands={
            "memory": Command(
                "look",
                "build, list, search and edit a memory",
                parts={
                    **{name: f"lightning_app.memory.commands:{name}" for name in ("build", "add")},
                    "list": "lightning_app.memory.commands:list_documents",
                    **{name: f"lightning_app.memory.commands:{name}" for name in ("search", "delete", "check")},
                },
            )
        },
        explain="lightning_app.memory.tools.attribution:explain",
        card="lightning_app.memory.tools.inspect:card_line",
        packages=("faiss-cpu", "numpy"),
    ),
    Idea(
        "art",
        parts={
            "ARTGPT2": "lightning_app.art.extension:ARTGPT2",
            "ARTRegularizer": "lightning_app.art.extension:ARTRegularizer",
        },
        commands={
            "categories": Command("look", "what ART sorted its inputs into", "lightning_app.art.commands:categories")
        },
        explain="lightning_app.art.explain:explain",
        close="lightning_app.art.categories:close",
    ),
    Idea(
        "plasticity",
        configurable=("lightning_app.plasticity.schedule", "lightning_app.plasticity.controller.callback"),
        shape="lightning_app.plasticity.kinds:take_layout",
        follow="lightning_app.plasticity.kinds:follow",
        events="lightning_app.plasticity.report.events:KINDS",
        sections="lightning_app.plasticity.report.sections:SECTIONS",
        shown_by=("plasticity_started", "controller_update"),
        explain="lightning_app.plasticity.explain:explain",
    ),
)


def here() -> Iterator[Idea]:
    """The ideas whose folders are here."""
    return (idea for idea in IDEAS if idea.is_here)


def import_all() -> None:
    """Import what a config may name, so that it is found by the name of its class alone."""
    for module in CONFIGURABLE:
        importlib.import_module(module)
    for idea in here():
        for module in dict.fromkeys([*(place.partition(":")[0] for place in idea.parts.values()), *idea.configurable]):
            importlib.import_module(module)


def load(place: str) -> Any:
    """The object at `module:object`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
