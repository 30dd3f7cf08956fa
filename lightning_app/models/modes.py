"""Ways of computing that last for a while: without dropout, in full precision, uncompiled, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Without dropout for a while; not for good, as Lightning warns of parts that begin a fit so."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def uncompiled() -> Iterator[None]:
    """What is compiled runs as it is written: hooks of inner parts are called, and gates or masks that come and go
    compile nothing anew."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, TF32 or bf16 inside of fp32 matmuls: neighbours would change places."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one thread: sums then have one order, and busy cores do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
