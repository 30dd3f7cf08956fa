"""What it costs to log a number."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

_walk = _ResultMetric.to


def _to(self: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
    there = not kwargs and len(args) == 1 and isinstance(args[0], torch.device) and self.value.device == args[0]
    return self if there else _walk(self, *args, **kwargs)


def log_in_place() -> None:
    """Leave a logged number where it is, if that is where it goes.

    Lightning looks through all that it keeps of a number, its metadata too, whenever one is logged: a quarter of a
    step of a small model. Seen in Lightning 2.6.6, where all tensors of a number lie on one device.
    """
    _ResultMetric.to = _to  # type: ignore[method-assign]
