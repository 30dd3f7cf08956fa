"""What a process that runs tests imports and sets up first; the fixtures that need it."""

from __future__ import annotations

import gc
import logging
import os
import ssl
from functools import cache, lru_cache
from typing import Any

import gguf
import lightning  # noqa: F401  (its log writes to the stderr that it finds when it is imported)
import torch
from jsonargparse import _core, _namespace, _subcommands
from lightning.fabric.utilities import registry

from tests.made_models import plain, pruned, reading, sorting  # noqa: F401  fixtures of many tests

torch.set_num_threads(1)
registry.entry_points = cache(registry.entry_points)  # each Trainer looks through all packages for more callbacks
ssl.create_default_context = cache(ssl.create_default_context)  # each HTTP client reads all certificates: 45 ms
os.fsync = lambda descriptor: None  # no test pulls the plug; a small fit waits for the disk 14 times

read_gguf, gguf.get_tensor_name_map = gguf.GGUFReader, cache(gguf.get_tensor_name_map)


@lru_cache(maxsize=2)
def read_once(path: str, _time: int, _size: int) -> Any:
    """A GGUF file's tokens take 0.1 s to read, and transformers reads a file twice for each model."""
    return read_gguf(path)


def reader_of(path: str | os.PathLike[str], *options: Any) -> Any:
    stat = os.stat(path)
    return read_once(os.fspath(path), stat.st_mtime_ns, stat.st_size) if not options else read_gguf(path, *options)


gguf.GGUFReader = reader_of

find_action = _subcommands.find_action_and_subcommand


def found_once(parser: Any, key: str, exclude: Any = None) -> Any:
    """jsonargparse goes through all options for each key, several times: a quarter of the time of parsing."""
    known = vars(parser).setdefault("_found", {})
    place = key, exclude, len(parser._actions)
    if place not in known:
        known[place] = find_action(parser, key, exclude)
    return known[place]


_core.find_action_and_subcommand = _subcommands.find_action_and_subcommand = found_once
parse_key = _namespace.Namespace._parse_key


def parsed_key(namespace: Any, key: str) -> Any:
    """Most keys have one part, which needs no splitting and joining."""
    if isinstance(key, str) and key.isidentifier():
        return _namespace.add_clash_mark(key), namespace, ""
    return parse_key(namespace, key)


_namespace.Namespace._parse_key = parsed_key


def pytest_collection_finish() -> None:
    """What the imports have made stays: without this each collection goes through half a million objects (12 % of a
    fit of six steps)."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True  # else pytest hangs its handlers on each of the 50, six times a test (1.4 ms)
    gc.collect()
    gc.freeze()
    gc.enable()
