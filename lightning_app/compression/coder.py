"""An arithmetic coder: a sequence of symbols in as many bits as their probabilities say, and two bytes.

A symbol is an interval of the integers from 0 to a total. `Encoder` narrows a range of 64 bits to that interval, and
`Decoder` finds in which one the number lies (Martin 1979, "Range encoding"; carries go into the bytes written before).
"""

# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Callable

import numpy as np

WORD = 64  # bits of the range
REFILL = WORD - 8  # a range below this many bits takes in another byte
TOTAL = 2**24  # of a distribution over tokens; a range is never shorter than its square


def frequencies(probabilities: np.ndarray) -> np.ndarray:
    """(V,) probabilities in float64 -> (V,) whole numbers, each above 0, that sum to `TOTAL`.

    What rounding leaves goes to the likeliest, so with V far below `TOTAL` a symbol costs what its probability says.
    """
    share = probabilities / probabilities.sum() * (TOTAL - len(probabilities))
    counts = share.astype(np.int64) + 1
    counts[counts.argmax()] += TOTAL - counts.sum()
    return counts


class Encoder:
    """Symbols -> bytes."""

    def __init__(self) -> None:
        self._low, self._range, self._written = 0, 1 << WORD, bytearray()

    def put(self, start: int, size: int, total: int) -> None:
        """Write the symbol that has the integers from `start` to `start + size` of `total`, at most `TOTAL`."""
        step = self._range // total
        self._low += step * start
        self._range = step * size
        while self._range < 1 << REFILL:
            self._shift()

    def finish(self) -> bytes:
        """All bytes; no zeros at their end, which a decoder adds."""
        kept = next(bits for bits in range(WORD, -1, -8) if self._rounded(bits) < self._low + self._range)
        self._low, self._range = self._rounded(kept), 1
        while self._low:
            self._shift()
        return bytes(self._written).rstrip(b"\0")

    def _rounded(self, zeros: int) -> int:
        """The lowest number of the range, rounded up to one with so many zero bits at its end."""
        return -(-self._low >> zeros) << zeros

    def _shift(self) -> None:
        """Write the upper byte of `low`, whose bits from 64 on are carried into what was written."""
        if self._low >> WORD:
            self._carry()
        self._written.append(self._low >> REFILL & 0xFF)
        self._low = (self._low & (1 << REFILL) - 1) << 8
        self._range <<= 8

    def _carry(self) -> None:
        place = len(self._written) - 1
        while self._written[place] == 0xFF:
            self._written[place] = 0
            place -= 1
        self._written[place] += 1


class Decoder:
    """Bytes -> symbols, for the same distributions in the same order. Other bytes give other symbols, not an error."""

    def __init__(self, data: bytes):
        self._data, self._next, self._range = data, WORD // 8, 1 << WORD
        self._code = int.from_bytes(data[: WORD // 8].ljust(WORD // 8, b"\0"), "big")

    def get(self, total: int, find: Callable[[int], tuple[int, int]]) -> None:
        """Read one symbol: `find` gets a number below `total`, and says where its symbol starts and how many it has."""
        step = self._range // total
        start, size = find(min(self._code // step, total - 1))
        self._code -= step * start
        self._range = step * size
        while self._range < 1 << REFILL:
            self._code = self._code << 8 | self._byte()
            self._range <<= 8

    def _byte(self) -> int:
        place, self._next = self._next, self._next + 1
        return self._data[place] if place < len(self._data) else 0
