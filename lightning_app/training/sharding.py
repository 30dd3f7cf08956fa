"""FSDP2: each rank holds a share of all parameters, gradients and optimizer states.

Lightning's `ModelParallelStrategy` makes the mesh of devices and writes the checkpoints; what is sharded is said here.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lightning_app.errors import InputError

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


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
