"""Vectors in a file instead of in RAM: mapped, so that tensors and FAISS read them where they lie."""

from __future__ import annotations

import importlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import InputError

ROWS_AT_ONCE_BYTES = 1 << 26


class MappedVectors:
    """A zeroed tensor (N, D) whose rows lie in the file `path`, created sparse; None: a nameless file in `folder`.

    The file holds the rows alone: which of them are entries stands in the memory, and in its checkpoint a copy of the
    rows too. A copy (`deepcopy`, pickle) gets a nameless file of its own, which is gone when it is.
    """

    def __init__(self, shape: tuple[int, int], *, dtype: torch.dtype, path: str | None = None, folder: str = "."):
        self._shape, self._dtype, self._folder = shape, dtype, folder
        if path is not None:
            self._folder = str(Path(path).parent)
        bytes_needed = shape[0] * shape[1] * dtype.itemsize
        with tempfile.TemporaryFile(dir=folder) if path is None else _opened(path, bytes_needed) as file:
            os.truncate(file.fileno(), bytes_needed)
            self._map = mmap.mmap(file.fileno(), bytes_needed)  # holds the file, and its lock, on its own
        self.tensor = torch.frombuffer(self._map, dtype=dtype).view(shape)

    def release(self) -> None:
        """Give the pages back to the system: they stay in the file (the mapping is shared) but not in this process."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def copy_from(self, rows_ND: Tensor) -> None:
        step = max(1, ROWS_AT_ONCE_BYTES // (self._shape[1] * self._dtype.itemsize))
        for start in range(0, len(rows_ND), step):
            self.tensor[start : start + step] = rows_ND[start : start + step]
            self.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> MappedVectors:
        other = MappedVectors(self._shape, dtype=self._dtype, folder=self._folder)
        other.copy_from(self.tensor)
        self.release()
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._folder, self.tensor)


def _unpickled(folder: str, rows_ND: Tensor) -> MappedVectors:
    shape = (rows_ND.shape[0], rows_ND.shape[1])
    found = MappedVectors(shape, dtype=rows_ND.dtype, folder=folder if Path(folder).is_dir() else tempfile.gettempdir())
    found.copy_from(rows_ND)
    return found


def _opened(path: str, bytes_needed: int) -> Any:
    """For this memory alone. A file of another size is somebody else's: it is not overwritten."""
    place = Path(path)
    if not place.parent.is_dir():
        raise InputError(f"the folder of path {path} does not exist: create it")
    try:
        fcntl = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        raise InputError(f"path {path} needs Unix's locks, which Windows lacks: leave path out") from None
    file = place.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"path {path} is in use by another memory: give each one a file of its own") from None
    found = os.fstat(file.fileno()).st_size
    if found not in (0, bytes_needed):
        file.close()
        raise InputError(
            f"path {path} has {found} bytes, the memory needs {bytes_needed}: delete it or give another path"
        )
    return file
