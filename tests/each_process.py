"""What a process that runs tests imports and sets up first; the fixtures that need it."""

from __future__ import annotations

import gc
from functools import cache

import lightning  # noqa: F401  (its log writes to the stderr that it finds when it is imported)
import torch
from lightning.fabric.utilities import registry

from tests.made_models import plain, pruned, reading, sorting  # noqa: F401  fixtures of many tests

torch.set_num_threads(1)
registry.entry_points = cache(registry.entry_points)  # each Trainer looks through all packages for more callbacks


def pytest_collection_finish() -> None:
    """What the imports have made stays: without this each collection goes through half a million objects (12 % of a
    fit of six steps)."""
    gc.collect()
    gc.freeze()
    gc.enable()
