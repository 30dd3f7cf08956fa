"""Compressors that adapt: what the test text adds to an archive of the training text."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from lightning_app.data.compressors import bits_per_byte, lzma_size, ppmd_size, zpaq_size

ARCHIVES = {"LZMA2": lzma_size, "PPMd": ppmd_size, "zpaq": zpaq_size}


def is_here(name: str) -> bool:
    """Whether it is installed."""
    found = {"PPMd": lambda: find_spec("pyppmd"), "zpaq": lambda: shutil.which("zpaq")}
    return name not in found or found[name]() is not None


def measured(name: str, train: bytes, test: bytes) -> tuple[float, float] | None:
    """Bits per byte, and CPU seconds for both archives; None where it is not installed."""
    if not is_here(name):
        return None
    start = _cpu_time()
    found = bits_per_byte(ARCHIVES[name], test, after=train)
    return found, _cpu_time() - start


def _cpu_time() -> float:
    """Of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
