"""Several ranks: what they agree on, and FSDP2, under which each holds a share of all parameters, gradients and states.

Lightning's `ModelParallelStrategy` makes the mesh of devices and writes the checkpoints; what is sharded is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_app.errors import InputError

if TYPE_CHECKING:
    import lightning as L  # an exported model has none

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


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


# FSDP2


def shard(module: L.LightningModule, blocks: Sequence[nn.Module], *, copies: bool) -> None:
    """Where `ModelParallelStrategy` has given a mesh, shard each block of the backbone, and all else as one piece.

    A block's parameters are gathered when it runs; those of the piece (embeddings, norms, readers) for a whole step.

    Args:
        module: what is trained.
        blocks: of its backbone.
        copies: whether it keeps copies of its model, which would not be sharded.

    Raises:
        InputError: tensor parallelism, scalar parameters, or a regulariser that keeps a copy of the model.
    """
    if module.device_mesh is None or isinstance(module, FSDPModule):
        return
    _check(module, module.device_mesh, copies=copies)
    mesh = module.device_mesh["data_parallel"]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for step in STEPS:
        register_fsdp_forward_method(module, step)


def _check(module: L.LightningModule, mesh: DeviceMesh, *, copies: bool) -> None:
    sizes = [mesh[name].size() for name in ("data_parallel", "tensor_parallel")]
    if sizes[1] > 1:
        raise InputError(
            f"data_parallel_size is {sizes[0]} and tensor_parallel_size {sizes[1]}: only parameters are sharded, no "
            f"matrix product is split; set trainer.strategy.init_args.data_parallel_size: {sizes[0] * sizes[1]} and "
            "tensor_parallel_size: 1"
        )
    if scalars := [name for name, parameter in module.named_parameters() if parameter.dim() == 0]:
        raise InputError(
            f"{scalars[0]} is a single number, which FSDP2 cannot cut into shards: use the strategy ddp, or a reader "
            "that learns none (CacheReader, KNNReader)"
        )
    if copies:
        raise InputError(
            "ModelParallelStrategy does not shard the averaged copy of the model that novelty: drift and rehearsal "
            "keep: use the strategy ddp, or novelty: margin without rehearsal"
        )


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks, which all call this; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
