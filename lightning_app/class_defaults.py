"""An optimizer or scheduler that a config names has its own class's defaults.

jsonargparse would leave it those options of the default class that it knows too: Adam got AdamW's weight decay.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from jsonargparse import Namespace

SPECS = ("model.init_args.optimizer", "model.init_args.scheduler")


def take_own_defaults(options: Namespace, given: Iterable[str]) -> None:
    """Set what no config or command line gives to the default of the class.

    Args:
        options: the parsed config; changed in place.
        given: dotted keys of all that was given.
    """
    plain = {_plain(key) for key in given}
    for key in SPECS:
        spec = options.get(key)
        named = plain & {_plain(key), f"{_plain(key)}.class_path"}
        if not isinstance(spec, Namespace) or not named or not spec.get("init_args"):
            continue
        for name, default in _defaults(spec.class_path).items():
            if name in spec.init_args and f"{_plain(key)}.{name}" not in plain:
                spec.init_args[name] = default


def _plain(key: str) -> str:
    return key.replace(".init_args", "")


def _defaults(class_path: str) -> dict[str, Any]:
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
