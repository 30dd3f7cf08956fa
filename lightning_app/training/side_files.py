"""Large memories beside a checkpoint: their vectors lie in files named by their content, which the checkpoint names.

checkpoints/best.ckpt             says where each tensor lies, with its SHA-256
checkpoints/memory/<sha256>.npy   the tensor, as `numpy.load` reads it; checkpoints with equal vectors share one
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_app.errors import DamagedError, InputError
from lightning_app.io import replacing
from lightning_app.training.checkpoint_keys import SIDE_FILES, WEIGHTS

SIDE_FILE_BYTES = 2**30  # larger ones lie beside the checkpoint
FOLDER = "memory"
STEP = 2**26  # bytes that are hashed or written at once


def is_large(name: str, tensor: Tensor, limit: int) -> bool:
    """Whether a tensor of a state_dict goes into a file of its own: the vectors of a memory with over `limit` bytes."""
    of_a_memory = ".bank." in name and name.endswith(".vectors") and tensor.dtype in (torch.float32, torch.float16)
    return of_a_memory and tensor.numel() * tensor.element_size() > limit


def offload(checkpoint: dict[str, Any], folder: Path, *, limit: int, suffix: str = ".ckpt") -> dict[str, Any]:
    """Write large vectors into `folder`/memory, unless they are there, and return the checkpoint with marks instead.

    Raises:
        InputError: the checkpoint's suffix is not that by which others of the folder are found.
    """
    state = checkpoint.get(WEIGHTS) or {}
    large = {name: t for name, t in state.items() if is_large(name, t, limit)}
    if not large:
        return checkpoint
    if suffix != ".ckpt":
        raise InputError(f"a checkpoint with a large memory ends in .ckpt, not {suffix!r}: give another name")
    marks = {name: _write(tensor, folder / FOLDER) for name, tensor in large.items()}
    return {**checkpoint, WEIGHTS: {name: t for name, t in state.items() if name not in large}, SIDE_FILES: marks}


def restore(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint that was read from `path`, with its large vectors mapped from their files.

    Raises:
        DamagedError: one is missing, or not as it was written.
    """
    marks = checkpoint.get(SIDE_FILES)
    if not marks:
        return checkpoint
    whole = {name: value for name, value in checkpoint.items() if name != SIDE_FILES}
    whole[WEIGHTS] = {**checkpoint[WEIGHTS], **{name: _read(mark, path) for name, mark in marks.items()}}
    return whole


def named_by(checkpoint: dict[str, Any]) -> set[str]:
    """The file names that a checkpoint names, as it stands on the disk."""
    return {Path(mark["file"]).name for mark in checkpoint.get(SIDE_FILES, {}).values()}


def remove_unnamed(folder: Path, names: set[str]) -> None:
    """Remove from `folder`/memory the files whose names are not among these, and the folder once it is empty."""
    place = folder / FOLDER
    for file in place.glob("*.npy"):
        if re.fullmatch(r"[0-9a-f]{64}", file.stem) and file.name not in names:
            file.unlink(missing_ok=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def exist(folder: Path) -> bool:
    """Whether there are any."""
    return (folder / FOLDER).is_dir()


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array (N, D), piece by piece."""
    step = max(1, STEP // max(1, rows.itemsize * rows.shape[1]))
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start : start + step]).reshape(-1).view(np.uint8)


def _digest(rows: np.ndarray) -> str:
    digest = hashlib.sha256(repr((rows.shape, rows.dtype.name)).encode())
    for part in _parts(rows):
        digest.update(part.data)
    return digest.hexdigest()


def _write(tensor: Tensor, folder: Path) -> dict[str, Any]:
    rows = tensor.detach().cpu().numpy()
    sha256 = _digest(rows)
    target = folder / f"{sha256}.npy"
    mark = {
        "file": f"{FOLDER}/{target.name}",
        "sha256": sha256,
        "shape": list(rows.shape),
        "dtype": rows.dtype.name,
    }
    if not _is_there(target, mark):
        folder.mkdir(exist_ok=True)
        _write_rows(rows, target)
        _whole.add(target.absolute())
    return mark


_whole: set[Path] = set()  # that this process has written or read: a gigabyte takes a second to hash


def _is_there(target: Path, mark: dict[str, Any]) -> bool:
    """Whole: a damaged one is written again while the vectors are at hand."""
    if not target.is_file() or target.stat().st_size < math.prod(mark["shape"]) * np.dtype(mark["dtype"]).itemsize:
        return False
    if target.absolute() not in _whole:
        try:
            if _digest(_mapped(target, mark)) != mark["sha256"]:
                return False
        except (ValueError, OSError):
            return False
        _whole.add(target.absolute())
    return True


def _write_rows(rows: np.ndarray, target: Path) -> None:
    with replacing(target) as file:
        header = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in _parts(rows):
            file.write(part.data)


def _read(mark: dict[str, Any], path: Path) -> Tensor:
    file, remedy = path.parent / mark["file"], "copy it from where the checkpoint was written, or build the memory anew"
    if not file.is_file():
        raise DamagedError(f"checkpoint {path} needs {file}, which is missing (SHA-256 {mark['sha256']}): {remedy}")
    try:
        rows = _mapped(file, mark)
        found = _digest(rows)
    except (ValueError, OSError) as error:
        raise DamagedError(f"{file}, which checkpoint {path} needs, cannot be read ({error}): {remedy}") from error
    if found != mark["sha256"]:
        raise DamagedError(
            f"{file} is damaged: checkpoint {path} needs SHA-256 {mark['sha256']}, it has {found}: {remedy}"
        )
    return torch.from_numpy(rows)


def _mapped(file: Path, mark: dict[str, Any]) -> np.ndarray:
    """The rows on private pages: nothing that is written to them reaches the file.

    `numpy.load` would parse the header, which may be damaged, and trips over it in many ways; the mark says it all.
    """
    with file.open("rb") as opened:
        head = opened.read(10)  # magic, version, and the length of the header behind them
    offset = len(head) + int.from_bytes(head[8:], "little")
    return np.memmap(file, dtype=mark["dtype"], mode="c", offset=offset, shape=tuple(mark["shape"]))
