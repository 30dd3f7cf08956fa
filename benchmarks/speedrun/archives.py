"""Compressors that adapt: what the test text adds to an archive of the training text."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ORDER, MEMORY = 8, 2**28  # of PPMd: characters of context, bytes


def lzma_size(data: bytes) -> int:
    """Bytes of raw LZMA2 at its highest preset, with all of the data in its dictionary."""
    dictionary = max(2**16, 1 << len(data).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def ppmd_size(data: bytes) -> int:
    """Bytes of a PPMd archive, variant I (`pip install pyppmd`)."""
    return len(import_module("pyppmd").compress(data, max_order=ORDER, mem_size=MEMORY))


def zpaq_size(data: bytes) -> int:
    """Bytes of an archive of the program zpaq at its best."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "text").write_bytes(data)
        command = ["zpaq", "add", "archive.zpaq", "text", "-method", "5", "-threads", "1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return Path(folder, "archive.zpaq").stat().st_size


ARCHIVES = {"LZMA2": lzma_size, "PPMd": ppmd_size, "zpaq": zpaq_size}


def is_here(name: str) -> bool:
    """Whether it is installed."""
    found = {"PPMd": lambda: find_spec("pyppmd"), "zpaq": lambda: shutil.which("zpaq")}
    return name not in found or found[name]() is not None


def bits_after(size: Callable[[bytes], int], train: bytes, test: bytes) -> float:
    """Bits per byte that a compressor needs for a text after another one."""
    return 8 * (size(train + test) - size(train)) / len(test)


def measured(name: str, train: bytes, test: bytes) -> tuple[float, float] | None:
    """Bits per byte, and CPU seconds for both archives; None where it is not installed."""
    if not is_here(name):
        return None
    start = _cpu_time()
    found = bits_after(ARCHIVES[name], train, test)
    return found, _cpu_time() - start


def _cpu_time() -> float:
    """Of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
