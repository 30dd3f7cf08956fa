"""What rebuilds a described backbone. An exported directory has a file of this name with the classes of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

find: Callable[[str], Any] | None = None  # from a name to its class; None: those that are registered
shape: Callable[..., None] | None = None  # what brings a backbone into its layouts; None: that of the table of ideas
