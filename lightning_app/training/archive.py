"""What `torch.save` writes is a zip archive with a CRC-32 of each of its parts, which `torch.load` does not look at."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib

from lightning_app.errors import first_line

STEP = 2**20  # bytes that are read at once
# What `zipfile` raises on damage: RuntimeError where a bit says "encrypted", NotImplementedError "of another version".
UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error, lzma.LZMAError)


def damage(path: str | os.PathLike[str], ending: str = "") -> str | None:
    """What is wrong with the parts of an archive whose names end in `ending`; None if each has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if part.filename.endswith(ending)]
            for part in parts:
                with archive.open(part) as file:
                    while file.read(STEP):
                        pass
    except UNREADABLE as error:
        return first_line(error)
    return None
