"""Files that exist whole or not at all."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_app.errors import InputError, is_full

_MACHINE = re.sub(r"\W", "", platform.node())  # a folder may be shared with others
_TEMPORARY = re.compile(rf"\..+\.{_MACHINE}-(\d+)\.tmp")


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
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


def temporary_name(path: Path) -> Path:
    """Where this process writes what is renamed to `path` once it is whole."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that were killed have left under a `temporary_name`."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or _runs(int(found[1])):
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target, flush, rename: a reader sees the old content or the new, never a part.

    Raises:
        InputError: the folder cannot be written, or its disk is full. The old file is then as it was.
    """
    temporary = temporary_name(path)
    try:
        with writing_into(path.parent, needed=len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            temporary.write_bytes(data)
            sync(temporary)
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


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
