"""Whether a directory has all of its weights, before any of them is read: the sizes say it in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lightning_app.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LENGTH = 8  # bytes at the start of a file, which say how long its header is
LONGEST = 100_000_000  # bytes of a header that the library reads
POINTER = b"version https://git-lfs"  # what Git LFS leaves in the place of a file


def check_weights(folder: Path) -> None:
    """Whether all files of weights are there, each as long as its header says. Pickled ones are never read.

    Raises:
        InputError: with the file, and how long it is.
    """
    if not folder.is_dir() or (any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))):
        return
    for file in _files(folder):
        if not file.is_file():
            raise InputError(f"{str(folder)!r} lacks its weights: there is no {file.name}; download it again")
        check_length(file)


def _files(folder: Path) -> Iterator[Path]:
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        yield folder / WEIGHTS
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged: it does not say where which weight lies; download it again") from error
    yield from (folder / str(name) for name in sorted(names, key=str))


def check_length(file: Path) -> None:
    """Whether a file is as long as its header says. Raises as `check_weights` does."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(LENGTH)
        if POINTER.startswith(start) and start:
            raise InputError(f"{file} is a pointer of Git LFS, not the weights: `git lfs pull` fetches them")
        header = int.from_bytes(start, "little")
        said = _end(opened.read(header)) if header <= min(size, LONGEST) else None
    whole = None if said is None else LENGTH + header + said
    if whole != size:
        of = "" if whole is None else f" of {whole:,}"
        raise InputError(f"{file} is truncated or damaged: it has {size:,}{of} bytes; download it again")


def _end(header: bytes) -> int | None:
    """Where the last tensor ends, counted from the end of the header; None: it does not say so."""
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        return None
