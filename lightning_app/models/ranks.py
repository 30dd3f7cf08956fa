"""What several ranks must agree on."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


def several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gathered(tensor: Tensor) -> Tensor:
    """(N, ...) of all ranks, in the order of the ranks; N may differ between them."""
    return torch.cat(gather_all_tensors(tensor.contiguous())) if several_ranks() else tensor


def rank() -> int:
    return torch.distributed.get_rank() if several_ranks() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if several_ranks() else 1
