"""A stream whose worker aborts when Python cleans up at its end; it is sent to a process that imports little."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from itertools import count
from typing import Any


class Aborting:
    def batches(self, share: int, shares: int, anchor: Any) -> Iterator[tuple[int, Any]]:
        atexit.register(os.abort)
        return ((i, {"at": i}) for i in count())

    def options(self) -> dict[str, Any]:
        return {}
