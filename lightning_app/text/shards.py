"""One array of token ids in several files, all but the last of the same size."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

SHARD_BYTES = 2**29  # of a file, unless said otherwise


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


class ShardWriter:
    """Writes ids one behind the other, and begins the next file where one is full.

    Args:
        folder: where the files go; there is a first one even if nothing is written.
        size: ids per file.
        first: number of the first file.
    """

    def __init__(self, folder: Path, size: int, *, first: int = 0) -> None:
        self.folder, self.size = folder, size
        self._number = first
        self._room = size
        self._file: BinaryIO = self._open()

    def _open(self) -> BinaryIO:
        return (self.folder / shard_name(self._number)).open("wb")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, ids: np.ndarray) -> None:
        """Append (n,) ids of the array's type."""
        while len(ids):
            if not self._room:
                self._next()
            now, ids = ids[: self._room], ids[self._room :]
            self._file.write(now.tobytes())
            self._room -= len(now)

    def _next(self) -> None:
        self._file.close()
        self._number += 1
        self._room = self.size
        self._file = self._open()


class Shards:
    """Reads like the (N,) array that the shards are parts of: by number, slice, or array of positions (any shape).

    Args:
        shards: the arrays, in order; all but the last have `size` ids.
        size: ids per shard.
    """

    def __init__(self, shards: Sequence[np.ndarray], size: int) -> None:
        self._shards = [np.asarray(shard) for shard in shards]  # indexing a memmap itself is slower
        self.size = size
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return (len(self._shards) - 1) * self.size + len(self._shards[-1])

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Copies what is asked for.

        Raises:
            IndexError: a position outside of 0 up to N - 1 (negative ones do not count from the end).
        """
        return self._slice(index) if isinstance(index, slice) else self._gather(np.asarray(index))

    def _slice(self, index: slice) -> np.ndarray:
        start, stop, step = index.indices(len(self))
        assert step == 1, "only consecutive ids can be sliced"
        first, last = start // self.size, max(start, stop - 1) // self.size
        parts = [
            self._shards[i][max(0, start - i * self.size) : max(0, stop - i * self.size)]
            for i in range(first, min(last + 1, len(self._shards)))
        ]
        return np.concatenate([np.empty(0, self.dtype), *parts])

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        """Sorted by shard, so that each is indexed once, however many there are."""
        flat = positions.ravel()
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"positions {flat.min()} to {flat.max()} of {len(self)}")
        number, within = np.divmod(flat, self.size)
        order = np.argsort(number.astype(np.uint16), kind="stable")  # radix sort; 65,536 shards hold 32 TB
        ends = np.cumsum(np.bincount(number))
        found = np.empty(flat.size, self.dtype)
        start = 0
        for i in np.flatnonzero(np.diff(ends, prepend=0)):
            chosen = order[start : ends[i]]
            found[chosen] = self._shards[i][within[chosen]]
            start = ends[i]
        return found.reshape(positions.shape)
