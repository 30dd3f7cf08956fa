"""Files that exist whole or not at all: one writer for all of them, and a lock."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lightning_app.errors import InputError, is_full

log = logging.getLogger(__name__)

_MACHINE = re.sub(r"\W", "", platform.node())  # a folder may be shared with others
_TEMPORARY = re.compile(rf"\..+\.{_MACHINE}-(\d+)\.tmp")
_in_use: set[Path] = set()  # temporary names of this process, now


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk; Windows cannot open a folder and need not."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_into(folder: Path, *, needed: int) -> Iterator[None]:
    """Turn the OSErrors of a block that writes into `folder` into InputErrors.

    Args:
        folder: named in the message.
        needed: bytes that the block writes at most.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise InputError(
                f"no space left in {folder}: up to {needed:,} bytes are needed, {_free_bytes(folder):,} are free; "
                "make room or choose a folder on another disk"
            ) from error
        raise InputError(f"cannot write into {folder} ({error}); choose a folder that can be written") from error


def _free_bytes(folder: Path) -> int:
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    return shutil.disk_usage(existing).free


# What is not whole yet


def temporary_name(path: Path) -> Path:
    """Where this process writes what is renamed to `path` once it is whole: on the same disk, so renaming is atomic."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.tmp")


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """The `temporary_name` of `path`, for a file or a folder; what is left there afterwards is removed."""
    name = temporary_name(path)
    _in_use.add(name.absolute())
    try:
        _remove(name)  # of a process that was killed and had the same number
        yield name
    finally:
        _remove(name)
        _in_use.discard(name.absolute())


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that were killed have left under a `temporary_name`."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and path.absolute() not in _in_use and not _is_of_another(int(found[1])):
            _remove(path)
            log.info("removed %s, left by a process that was killed", path)


def _is_of_another(process: int) -> bool:
    """Whether a process of this number runs which is not this one (a container gives the same numbers again)."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# Writing


@contextmanager
def replacing(path: Path, *, put: Callable[[Path, Path], Any] = Path.replace) -> Iterator[BinaryIO]:
    """A file that is flushed to the disk and takes the place of `path` at the end.

    A reader sees the old content or the new, never a part. A kill, a crash or an error inside leaves the old content.

    Args:
        path: its folder exists.
        put: renames the temporary file (first) to `path` (second).
    """
    with temporary(path) as name:
        with name.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(name, path)
        sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file in one piece, `replacing` what was there; makes its folder, and removes leftovers from it.

    Raises:
        InputError: the folder cannot be written, or its disk is full. The old file is then as it was.
    """
    with writing_into(path.parent, needed=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with replacing(path) as file:
            file.write(data)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `<path>.lock`, so that of several processes one works and the others wait. The lock file stays."""
    from filelock import FileLock  # with asyncio: a fifth of the start of a process that tokenises, and locks nothing

    lock = FileLock(path.with_name(path.name + ".lock"))
    with writing_into(path.parent, needed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
