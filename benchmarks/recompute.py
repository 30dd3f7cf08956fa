"""What gradient checkpointing saves and costs: bytes kept for the backward, and time of forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.common import Contestant, Row, Run, Table, check_equal, compare, main, ratio_row
from benchmarks.same_weights import seeded_decoder
from benchmarks.train_step import SMALL, TINY, Shape, batches
from lightning_app.models.losses import cross_entropy

SIDES = {"plain": False, "recomputed": True}


def training(shape: Shape, recomputes: bool) -> Run:
    """In its own process: a run is a forward and a backward, and returns the loss."""
    model = seeded_decoder(**shape.decoder_options(), gradient_checkpointing=recomputes).train()
    data = batches(shape)

    def step() -> float:
        ids, targets = next(data)
        loss = cross_entropy(model(ids), targets)
        loss.backward()
        model.zero_grad()
        return loss.item()

    return step


def kept(shape: Shape, *, recomputes: bool) -> int:
    """Bytes of the tensors that a forward keeps for its backward, weights apart."""
    model = seeded_decoder(**shape.decoder_options(), gradient_checkpointing=recomputes).train()
    weights, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids, targets = next(batches(shape))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = cross_entropy(model(ids), targets)
    assert loss.requires_grad
    return sum(size for place, size in found.items() if place not in weights)


def tables(quick: bool) -> Iterator[Table]:
    shape = TINY if quick else SMALL
    sides = [Contestant(name, training, {"shape": shape, "recomputes": on}) for name, on in SIDES.items()]
    timings = compare(sides, rounds=1 if quick else 9)
    check_equal("losses", timings.results, tolerance=0)
    bytes_of = {name: kept(shape, recomputes=on) for name, on in SIDES.items()}
    rows = [Row(f"{name}: kept for the backward", f"{size / 2**20:.1f} MiB") for name, size in bytes_of.items()]
    rows.append(ratio_row("time, recomputed / plain", timings.ratios("plain", "recomputed")))
    notes = f"One thread, fp32, {shape.name}, batch {shape.batch_size} x {shape.block_size}, forward and backward."
    yield Table("Gradient checkpointing", rows, notes)


if __name__ == "__main__":
    main(tables)
