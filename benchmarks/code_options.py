"""The options that a YAML or the command line can give, counted by the resolver of signatures that LightningCLI uses.

A script of its own, which `benchmarks.code_size` starts with the tree that it counts in PYTHONPATH. Prints JSON: names
by the class that defines them.

Counted are the arguments of classes of ours: of Lightning's kinds (module, data, callback, logger, scheduler,
optimizer) and of all that the types of their arguments name, subclasses too; and the CLI's own arguments. `**kwargs`
are followed to where they end. An argument that several classes inherit or pass on counts once, where it is defined.
The keys of a TypedDict count, those of another dict do not: `dicts` names the arguments that are one.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, is_typeddict

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning as L
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lightning_app

KINDS = (L.LightningModule, L.LightningDataModule, L.Callback, Logger, LRScheduler, Optimizer)


def imported() -> list[str]:
    """Import every module; those that a missing package keeps from it."""
    missing = []
    for module in pkgutil.walk_packages(lightning_app.__path__, "lightning_app."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            missing.append(f"{module.name}: {error}")
    return missing


def is_ours(x: object) -> bool:
    return inspect.isclass(x) and x.__module__.partition(".")[0] == "lightning_app"


def classes() -> list[type]:
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "lightning_app"]
    found = {x for module in modules for x in vars(module).values() if is_ours(x)}
    return sorted(found, key=lambda c: (c.__module__, c.__qualname__))


def within(annotation: Any) -> Iterator[type]:
    """Classes of ours that a type names, at whatever depth."""
    if is_ours(annotation):
        yield annotation
    for part in annotation if isinstance(annotation, list | tuple) else get_args(annotation):
        yield from within(part)


def options() -> dict[str, Any]:
    """Names of all, by class; those that only a group called `advanced` has; and those that are a dict."""
    by_class, dicts = reached(groups=True)
    outside, _ = reached(groups=False)
    in_groups = [f"{c}.{name}" for c, names in by_class.items() for name in names if name not in outside.get(c, [])]
    schedule = [name for _, name, _ in arguments(next(c for c in classes() if c.__name__ == "PlasticitySchedule"))]
    return {"options": by_class, "advanced": in_groups, "dicts": dicts, "schedule": sorted(schedule)}


def reached(*, groups: bool) -> tuple[dict[str, list[str]], list[str]]:
    """Names by class, and those that are a dict; without `groups` what an `advanced` names is not followed."""
    known = classes()
    todo: list[type] = [c for c in known if issubclass(c, KINDS)]
    done: set[type] = set()
    found: dict[str, set[str]] = {}
    dicts: set[str] = set()
    while todo:
        if (cls := todo.pop()) in done:
            continue
        done.add(cls)
        for owner, name, annotation in arguments(cls):
            if groups or name != "advanced":
                todo += [c for t in within(annotation) for c in known if issubclass(c, t)]
            if not is_ours(owner):
                continue
            found.setdefault(owner.__qualname__, set()).add(name)
            if any(issubclass(o, Mapping) for o in origins(annotation)):
                dicts.add(f"{owner.__qualname__}.{name}")
    return {name: sorted(names) for name, names in sorted(found.items())}, sorted(dicts)


def arguments(cls: type) -> Iterator[tuple[type, str, Any]]:
    """The class that defines it, name and type of each."""
    if is_typeddict(cls):
        yield from ((cls, name, annotation) for name, annotation in cls.__annotations__.items())
        return
    for parameter in get_signature_parameters(cls, "__init__"):
        parent = parameter.parent if inspect.isclass(parameter.parent) else cls
        yield defining(parent, parameter.name), parameter.name, parameter.annotation


def defining(cls: type, name: str) -> type:
    """The class whose argument it is: a base, perhaps Lightning's, where a class has no `__init__` of its own."""
    fields = [c for c in cls.__mro__ if is_dataclass(c) and name in inspect.get_annotations(c)]
    inits = [c for c in cls.__mro__ if "__init__" in vars(c)]
    return [*fields[-1:], *inits[:1], cls][0]


def origins(annotation: Any) -> Iterator[type]:
    """Generic classes within a type, such as dict of `dict[str, int] | None`."""
    for x in (annotation, get_origin(annotation)):
        if inspect.isclass(x):
            yield x
    for part in get_args(annotation):
        yield from origins(part)


class Unlinked(LightningArgumentParser):
    """Takes arguments alone: links go to the model's, which it does not have."""

    def link_arguments(self, *args: Any, **kwargs: Any) -> None:
        pass


def of_the_cli() -> list[str]:
    """What subclasses of LightningCLI add to the parser."""
    parser = Unlinked()
    before = {action.dest for action in parser._actions}
    for cli in classes():
        if issubclass(cli, LightningCLI) and "add_arguments_to_parser" in vars(cli):
            cli.add_arguments_to_parser(cli.__new__(cli), parser)
    return sorted({action.dest for action in parser._actions} - before)


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        missing = imported()
        found = options()
        found["options"]["the command line"] = of_the_cli()
    print(json.dumps({**found, "missing": missing}))


if __name__ == "__main__":
    main()
