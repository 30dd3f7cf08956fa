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
        """Rows of consecutive positions, as windows are, one by one; what else there is together."""
        if not positions.size:
            return np.empty(positions.shape, self.dtype)
        if not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {len(self)}")
        rows = positions.reshape(-1, positions.shape[-1] if positions.ndim else 1)
        found = np.empty(rows.shape, self.dtype)
        is_run = (rows[:, 1:] - rows[:, :-1] == 1).all(axis=1)
        self._copy_runs(is_run.nonzero()[0].tolist(), rows[is_run, 0].tolist(), found)
        if not is_run.all():
            found[~is_run] = self._scattered(rows[~is_run].ravel()).reshape(-1, rows.shape[1])
        return found.reshape(positions.shape)

    def _copy_runs(self, rows: list[int], starts: list[int], found: np.ndarray) -> None:
        """The n ids from each start on, to these rows of found (B, n). Half of the time of a fetch: kept short."""
        size, shards, n = self.size, self._shards, found.shape[1]
        for row, start in zip(rows, starts, strict=True):
            within = start % size
            ids = shards[start // size][within : within + n]
            found[row] = ids if len(ids) == n else self._slice(slice(start, start + n))

    def _scattered(self, positions: np.ndarray) -> np.ndarray:
        """The ids at positions (n,), sorted by shard, so that each shard is indexed once, however many there are."""
        number, within = np.divmod(positions, self.size)
        order = np.argsort(number.astype(np.uint16), kind="stable")  # radix sort; 65,536 shards hold 32 TB
        ends = np.cumsum(np.bincount(number))
        found = np.empty(len(positions), self.dtype)
        start = 0
        for i in np.flatnonzero(np.diff(ends, prepend=0)):
            chosen = order[start : ends[i]]
            found[chosen] = self._shards[i][within[chosen]]
            start = ends[i]
        return found
