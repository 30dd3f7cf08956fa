"""The precision that this machine computes fast in."""

import platform

import torch

SLOW = "bf16-mixed"
INSTEAD = "32-true"


def has_fast_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16. x86 without them emulates: some seven times slower than
    float32. Other kinds of CPU are taken to have them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def runs_on_cpu(accelerator: object) -> bool:
    """Whether a Trainer with this `accelerator` computes on the CPU."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def is_slow_here(precision: object, accelerator: object) -> bool:
    """Whether float32 is as good and faster: it holds all that bf16 does."""
    return precision == SLOW and runs_on_cpu(accelerator) and not has_fast_bf16()
