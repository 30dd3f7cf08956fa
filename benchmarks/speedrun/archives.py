"""Compressors that adapt: what the test text adds to an archive of the training text."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lightning_app.data.compression import lzma_bits_per_byte

ORDER, MEMORY = 8, 2**28  # of PPMd: characters of context, bytes


def ppmd_size(data: bytes) -> int:
    """Bytes of a PPMd archive (`pip install pyppmd`)."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(ORDER, MEMORY)
    return len(encoder.encode(data) + encoder.flush())


def zpaq_size(data: bytes) -> int:
    """Bytes of an archive of the program zpaq at its best."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "text").write_bytes(data)
        command = ["zpaq", "add", "archive.zpaq", "text", "-method", "5", "-threads", "1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return Path(folder, "archive.zpaq").stat().st_size


def _has_ppmd() -> bool:
    try:
        import pyppmd  # noqa: F401
    except ImportError:
        return False
    return True


def bits_after(size: Callable[[bytes], int], train: bytes, test: bytes) -> float:
    """Bits per byte that a compressor needs for a text after another one."""
    return 8 * (size(train + test) - size(train)) / len(test)


# Whether it is here, and its figure.
ARCHIVES: dict[str, tuple[Callable[[], bool], Callable[[bytes, bytes], float]]] = {
    "LZMA2": (lambda: True, lzma_bits_per_byte),
    "PPMd": (_has_ppmd, lambda train, test: bits_after(ppmd_size, train, test)),
    "zpaq": (lambda: shutil.which("zpaq") is not None, lambda train, test: bits_after(zpaq_size, train, test)),
}


def measured(name: str, train: bytes, test: bytes) -> tuple[float, float] | None:
    """Bits per byte, and CPU seconds for both archives; None where it is not installed."""
    is_here, figure = ARCHIVES[name]
    if not is_here():
        return None
    start = _cpu_time()
    found = figure(train, test)
    return found, _cpu_time() - start


def _cpu_time() -> float:
    """Of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
