"""What a memory stores of its entries: a column each for vectors, payload and use, with one row per slot.

The functions work on the buffers of a module, by name. Shapes: M slots, N entries, D width, S span.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.options import MemoryOptions


@dataclass(frozen=True)
class Payload:
    """What a writer knows of N entries besides their vectors; None: unknown, which reads as -1."""

    tokens: Tensor | None = None  # (N,) id of the next token
    documents: Tensor | None = None  # (N,) content key of the document
    positions: Tensor | None = None  # (N,) in the document
    spans: Tensor | None = None  # (N, S) token ids that show the entry as text, padded with -1 on the left


@dataclass(frozen=True)
class Entries:
    """What the memory knows of entries besides their vectors; -1 (ages, uses, strengths: 0) for the id -1."""

    tokens: Tensor  # (...) int64
    documents: Tensor  # (...) int64
    positions: Tensor  # (...) int64
    spans: Tensor  # (..., S) int32
    ages: Tensor  # (...) int64, ticks since it was added
    uses: Tensor  # (...) int64, how often it was touched
    strengths: Tensor  # (...) float32, 1 when added


PAYLOAD = tuple(field.name for field in fields(Payload))
BLANK: dict[str, Any] = {
    "vectors": 0,
    "slot_ids": -1,
    **dict.fromkeys(PAYLOAD, -1),
    **dict.fromkeys(("written", "used", "uses", "strengths"), 0),
}  # the columns, and what a free slot holds


def blank_columns(options: MemoryOptions) -> dict[str, Tensor]:
    """All columns of M free slots; without the vectors where a file holds them."""
    M = options.memory_size
    shapes = {"vectors": (M, options.memory_dim), "spans": (M, options.span_length)}
    dtypes = {"vectors": options.storage, "spans": torch.int32, "strengths": torch.float32}
    return {
        name: torch.full(shapes.get(name, (M,)), blank, dtype=dtypes.get(name, torch.long))
        for name, blank in BLANK.items()
        if name != "vectors" or options.path is None
    }


def new_rows(
    vectors: Tensor, payload: Mapping[str, Tensor], *, ids: Tensor, clock: Tensor, span_length: int
) -> dict[str, Tensor]:
    """All columns of N entries that are added now; what the payload does not give is -1."""
    now, unknown = clock.expand(len(ids)), torch.full_like(ids, -1)
    known = {**dict.fromkeys(PAYLOAD, unknown), "spans": unknown[:, None].expand(-1, span_length), **payload}
    used = {"written": now, "used": now, "uses": 0 * now, "strengths": torch.ones_like(now).float()}
    return {"vectors": vectors, "slot_ids": ids, **known, **used}


def write_rows(buffers: Mapping[str, Any], slots: Tensor, columns: Mapping[str, Tensor]) -> None:
    """Put rows (N, ...) of some columns into slots (N,)."""
    for name, column in columns.items():
        buffers[name].index_copy_(0, slots, column.to(buffers[name].dtype))


def rows_of(buffers: Mapping[str, Any], slots: Tensor) -> dict[str, Tensor]:
    """A copy of all columns of slots (N,)."""
    return {name: buffers[name][slots] for name in BLANK}


def clear_rows(buffers: Mapping[str, Any], slots: slice) -> None:
    """Make slots as those that were never used."""
    for name, blank in BLANK.items():
        buffers[name][slots] = blank


def read_entries(buffers: Mapping[str, Any], slots: Tensor) -> Entries:
    """What is known of slots (...), -1: none."""
    columns = {name: _column(buffers, name, slots) for name in (*PAYLOAD, "uses", "strengths")}
    ages = torch.where(slots < 0, 0, buffers["clock"] - buffers["written"][slots])
    return Entries(**columns, ages=ages)


def _column(buffers: Mapping[str, Any], name: str, slots: Tensor) -> Tensor:
    values: Tensor = buffers[name][slots]
    missing = (slots < 0).view(*slots.shape, *[1] * (values.dim() - slots.dim()))
    return values.masked_fill(missing, BLANK[name])


def check_vectors(vectors: Tensor, *, width: int) -> None:
    """Refuses those of another width, of whole numbers, or with NaN or infinite values."""
    if vectors.shape[-1:] != (width,):
        raise InputError(f"vectors have the shape {tuple(vectors.shape)}, but memory_dim is {width}")
    if not vectors.is_floating_point():
        raise InputError(f"vectors are {vectors.dtype}: give floating point numbers")
    if not all_finite(vectors):
        wrong = vectors[~vectors.isfinite()]
        raise InputError(f"{len(wrong)} of {vectors.numel()} values of the vectors are not finite ({float(wrong[0])})")


def stored_vectors(vectors: Tensor, like: Tensor) -> Tensor:
    """(N, D) in the type and on the device of the stored ones (M, D)."""
    if vectors.dim() != 2:
        raise InputError(f"vectors have the shape {tuple(vectors.shape)}: give (N, {like.shape[1]})")
    check_vectors(vectors, width=like.shape[1])
    rows = vectors.detach().to(like.device, like.dtype)
    if rows.dtype == torch.float16 and not all_finite(rows):
        raise InputError(f"a value of {float(vectors.abs().max()):.6g} does not fit float16 (65504): use float32")
    return rows


def all_finite(values: Tensor) -> bool:
    """A finite sum shows it 20 times faster; a sum may overflow, so look again before saying no."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def payload_columns(payload: Payload, *, count: int, span_length: int, device: torch.device) -> dict[str, Tensor]:
    """The columns (count,), spans (count, S), that a payload gives."""
    columns = {}
    for name in PAYLOAD:
        column = getattr(payload, name)
        shape = (count, span_length) if name == "spans" else (count,)
        if column is None:
            continue
        if tuple(column.shape) != shape or column.is_floating_point():
            raise InputError(f"{name} are {column.dtype} {tuple(column.shape)}: give int64 {shape}")
        columns[name] = column.to(device)
    return columns
