"""Compressors, which learn from what they read: what each needs for a text once it has read another."""

from __future__ import annotations

import importlib.util
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

MIB = 2**20
ZPAQ_SECONDS = 120  # a machine on which it takes longer does without
LONG_AGO = 946_684_800  # the first second of 2000: an archive of zpaq holds dates


@dataclass(frozen=True)
class Compressor:
    """One that is installed.

    Attributes:
        name: "lzma", "ppmd" or "zpaq".
        size: bytes of what it makes of some bytes.
        least, most: bytes of both texts together; of fewer it does not say much, and more take it minutes.
    """

    name: str
    size: Callable[[bytes], int]
    least: int = 0
    most: int = 64 * MIB


def installed() -> Iterator[Compressor]:
    """LZMA2, and PPMd and zpaq where they are here."""
    yield Compressor("lzma", lzma_size)
    if importlib.util.find_spec("pyppmd"):
        yield Compressor("ppmd", ppmd_size)
    if shutil.which("zpaq"):
        yield Compressor("zpaq", zpaq_size, least=MIB // 32, most=2 * MIB)


def bits_per_byte(size: Callable[[bytes], int], text: bytes, *, after: bytes) -> float:
    """What a text adds to what was read before it: 8 (size(after + text) - size(after)) / len(text)."""
    return 8 * (size(after + text) - size(after)) / len(text)


def lzma_size(data: bytes) -> int:
    """Bytes of raw LZMA2 (no container) at its highest preset.

    The preset's dictionary of 64 MiB takes 0.06 s to lay out. One that holds all of the data compresses it as well.
    """
    dictionary = min(64 * MIB, 1 << max(12, len(data).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def ppmd_size(data: bytes) -> int:
    """Bytes of PPMd (variant I) of order 8. It forgets all when its memory is full: 10 MB of English need 128 MiB."""
    import pyppmd

    return len(pyppmd.compress(data, max_order=8, mem_size=max(64 * MIB, 16 * len(data))))


def zpaq_size(data: bytes) -> int:
    """Bytes of an archive of `zpaq -m5`; raises as `zpaq_archive` does."""
    return len(zpaq_archive(data))


def zpaq_archive(data: bytes) -> bytes:
    """What `zpaq -m5` makes of it, up to 64 MiB as one block; the same at any time.

    Raises:
        OSError, SubprocessError: it does not work here.
    """
    with TemporaryDirectory() as folder:
        file, archive = Path(folder, "text"), Path(folder, "text.zpaq")
        file.write_bytes(data)
        os.utime(file, (LONG_AGO, LONG_AGO))
        command = ["zpaq", "add", archive.name, file.name, "-m5", "-noattributes", "-until", "20000101000000"]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=ZPAQ_SECONDS)
        return archive.read_bytes()
