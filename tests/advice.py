"""Advice that a run of a few steps on a few words gets: a test says which, and any other warning is an error."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch

SHORT = r"the run has [0-9]+ steps, so it ends within the [0-9]+ of its warm-up"
LITTLE_TEXT = r"parameters for [0-9,]+ training tokens"
MISSING = r"add the following callbacks"  # Lightning's


@contextmanager
def advised(*messages: str) -> Iterator[None]:
    """Each of these is said within, unless an exception leaves it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in messages:
        assert any(re.search(message, str(w.message)) for w in caught), f"nothing said {message!r}"
    for w in caught:
        if not any(re.search(message, str(w.message)) for message in messages):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def missing(trainer: L.Trainer, resumed: str | Path | None) -> list[str]:
    """What Lightning says if a checkpoint has the state of a callback that the resumed run lacks."""
    if resumed is None:
        return []
    states = torch.load(resumed, weights_only=True)["callbacks"]
    return [MISSING] if set(states) - {callback.state_key for callback in trainer.callbacks} else []
