"""Entries of a memory that fade: their strengths decay, and the weakest are removed.

The first VardaGPT had both as methods. No run here uses them: entries leave a memory by eviction, by
`forgetfulness_factor` and by what a model deletes.
"""

from __future__ import annotations

import torch

from lightning_app.errors import InputError
from lightning_app.memory.store import AssociativeMemory


@torch.no_grad()
def age_memory(memory: AssociativeMemory, decay: float = 0.999) -> None:
    """Multiply all strengths by `decay`, from 0 to 1; eviction `least_useful` weighs by them."""
    if not 0 <= decay <= 1:
        raise InputError(f"decay is {decay}: give a number from 0 to 1")
    memory.strengths *= decay


@torch.no_grad()
def garbage_collect(memory: AssociativeMemory, threshold: float = 1e-6) -> int:
    """Remove the entries with a strength below `threshold` -> how many went."""
    ids = memory.ids()
    weak = ids[memory.payload(ids).strengths < threshold]
    memory.remove(weak)
    return len(weak)
