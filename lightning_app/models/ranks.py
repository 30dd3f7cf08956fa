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


def summed(tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors; may change this one."""
    if several_ranks():
        torch.distributed.all_reduce(tensor)
    return tensor


def mean_over_ranks(mean: Tensor, n: int | Tensor) -> Tensor:
    """The mean over all ranks' things, from a scalar mean over the `n` of this one; all ranks call it together.

    Its value is the same on every rank. Its gradient is this rank's part, scaled so that the mean of the ranks'
    gradients, which is what DDP and FSDP take, is the gradient of the whole, also where ranks have different `n`.
    """
    if not several_ranks():
        return mean
    n = torch.as_tensor(n, dtype=mean.dtype, device=mean.device)
    sums = torch.stack([(mean * n).detach(), n])
    torch.distributed.all_reduce(sums)
    total, count = sums[0], sums[1].clamp_min(1)
    own = mean * (n * world_size() / count)
    return own + (total / count - own).detach()
