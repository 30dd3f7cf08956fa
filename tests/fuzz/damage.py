"""Flipped bits and cut ends in the files of a kind, which are whole again before the next case."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.registry import Case, Outcome, judged

CUT = 0.3  # share of the cases in which a file is cut; in the others 1 to 3 bits are flipped


class Files:
    """Files with their content."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.content = {path: path.read_bytes() for path in paths}
        assert self.content
        assert all(self.content.values())

    def restore(self) -> None:
        for path, content in self.content.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def damage(self, draw: random.Random) -> str:
        """Damage one of them and say how."""
        path = draw.choice(list(self.content))
        content = bytearray(self.content[path])
        if draw.random() < CUT:
            size = draw.randrange(len(content))
            path.write_bytes(content[:size])
            return f"{path.name} cut to {size} of {len(content)} bytes"
        bits = [draw.randrange(8 * len(content)) for _ in range(draw.choice((1, 1, 2, 3)))]
        for bit in bits:
            content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        return f"{path.name} with bits {bits} flipped"


def damaged(
    paths: Sequence[Path], read: Callable[[random.Random], Any], *, expected: Any = None, other_is_valid: bool = False
) -> Case:
    """Cases that damage one of `paths` and read what they hold; `expected` is what is read of whole ones by default."""
    files = Files(paths)
    whole = read(random.Random(0)) if expected is None else expected

    def case(draw: random.Random) -> Outcome:
        note = files.damage(draw)
        try:
            return judged(lambda: read(draw), whole, note=note, other_is_valid=other_is_valid)
        finally:
            files.restore()

    return case
