"""Refuses to write a checkpoint that could not be read back, with the part that is at fault."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.training.checkpoint_keys import CALLBACKS

LEAVES = {type(None), bool, int, float, str, bytes, complex, Tensor, torch.nn.Parameter}
MAPPINGS, SEQUENCES = (dict, OrderedDict), (list, tuple, set)
Keys = tuple[Any, ...]


def check_plain(checkpoint: Mapping[str, Any]) -> None:
    """Checkpoints are read with `weights_only=True`: tensors and plain types alone.

    Raises:
        InputError: another type, with the key that it stands at and the callback that put it there.
    """
    for keys, value in _others(checkpoint, ()):
        if isinstance(value, Tensor) or _can_be_read(value):
            continue
        owner, inner = (f"the callback {keys[1]}", keys[2:]) if keys[:1] == (CALLBACKS,) else ("the run", keys)
        raise InputError(
            f"{owner} puts a {type(value).__module__}.{type(value).__qualname__} into the checkpoint"
            f"{_place(inner)}, and it could not be read back: make it a number, text, list, dict or tensor "
            "(float(x), str(path)) before any training is lost"
        )


def _others(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """What is neither a leaf of a plain type nor a container of those, and where it is."""
    if type(value) in MAPPINGS:
        yield from _among(value.keys(), ((*keys, key) for key in value))
        yield from _among(value.values(), ((*keys, key) for key in value))
    elif type(value) in SEQUENCES:
        yield from _among(value, ((*keys, i) for i in range(len(value))))
    elif type(value) not in LEAVES:
        yield keys, value


def _among(values: Iterable[Any], places: Iterable[Keys]) -> Iterator[tuple[Keys, Any]]:
    if set(map(type, values)) <= LEAVES:  # a tokenizer or a memory has a million
        return
    for value, keys in zip(values, places, strict=True):
        yield from _others(value, keys)


def _can_be_read(value: Any) -> bool:
    """Asked of torch itself, which knows further types (torch.Size, a dtype)."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError):
        return False
    return True


def _place(keys: Keys) -> str:
    return f" at {'.'.join(map(str, keys))}" if keys else ""
