"""Checkpoints that are either whole or not there, and plain words about those that are damaged."""

import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_app.errors import DamagedError, InputError, first_line, is_full
from lightning_app.io import remove_leftovers, replacing
from lightning_app.models.hugging_face import model_near
from lightning_app.reports.run_folder import previous
from lightning_app.training import side_files
from lightning_app.training.archive import damage
from lightning_app.training.checkpoint_keys import STEP
from lightning_app.training.plain_types import check_plain
from lightning_app.training.previous_checkpoint import put_in_place
from lightning_app.training.side_files import SIDE_FILE_BYTES

log = logging.getLogger(__name__)

SHARDS = ".metadata"  # in the folder of torch's distributed checkpoints
PLAIN = "/data.pkl"  # the part of the archive in which all but tensors lies
_NAMED = 5  # how many other checkpoints a message lists


def read_checkpoint(path: str | os.PathLike[str], *, mmap: bool = False) -> dict[str, Any]:
    """The checkpoint at `path`, its tensors on the CPU; only plain types are unpickled, so it can run no code.

    Args:
        mmap: leave the tensors on the disk until they are looked at. They are read once all the same, for their sums.

    Raises:
        DamagedError: it is empty, cut off or changed; the message lists the folder's others.
        InputError: it is missing, or holds other types.
    """
    return _read(Path(path), map_location="cpu", weights_only=True, mmap=mmap)


def read_numbers(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checkpoint without what lies beside it, for a look at its plain values: of its tensors nothing is read."""
    return _load(Path(path), map_location="cpu", weights_only=True, mmap=True, checked=PLAIN)


def _read(path: Path, *, map_location: Any, weights_only: bool, mmap: bool = False) -> dict[str, Any]:
    checkpoint = _load(path, map_location=map_location, weights_only=weights_only, mmap=mmap)
    return side_files.restore(checkpoint, path)


def _load(
    path: Path, *, map_location: Any, weights_only: bool, mmap: bool = False, checked: str = ""
) -> dict[str, Any]:
    """What is in the file itself, once the sums of its parts that end in `checked` are found right."""
    _check_file(path)
    _check_sums(path, checked)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=weights_only, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} holds more than tensors and plain types, so it is not loaded: {first_line(error)}; "
            "if you trust its author, load it with weights_only=False and save what you need in plain types"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise DamagedError(f"checkpoint {path} is damaged: {first_line(error)}; {_others(path)}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint; {_others(path)}")
    return checkpoint


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is {_kind_of_folder(path)}")
    if not path.is_file():
        raise InputError(f"there is no checkpoint file {path}; {_others(path)}")
    if path.stat().st_size == 0:
        raise DamagedError(f"checkpoint {path} is empty (0 bytes); {_others(path)}")
    if path.suffix != ".ckpt" and (meant := model_near(path)) is not None:
        raise InputError(f"{path} is {meant}")
    if not zipfile.is_zipfile(path):  # the directory of the archive stands at its end: truncated files lack it
        size = path.stat().st_size
        raise DamagedError(f"checkpoint {path} is truncated or not a checkpoint ({size:,} bytes); {_others(path)}")


def _kind_of_folder(path: Path) -> str:
    if (path / SHARDS).is_file():
        return (
            "a folder of shards: make it one file, "
            f"python -m lightning.fabric.utilities.consolidate_checkpoint {path} --output_file best.ckpt"
        )
    return model_near(path) or (
        "a folder without a model: neither a Hugging Face directory (config.json) nor a sharded checkpoint "
        f"({SHARDS}); give a checkpoint (.ckpt), or such a directory"
    )


def _check_sums(path: Path, ending: str = "") -> None:
    found = damage(path, ending)
    if found:
        raise DamagedError(f"checkpoint {path} is damaged: {found}; {_others(path)}")


def _others(path: Path) -> str:
    """The remedy: the newest other checkpoints in the folder of `path`."""
    found = (other for other in path.parent.glob("*.ckpt") if other.name != path.name and other.stat().st_size > 0)
    newest = sorted(found, key=lambda other: other.stat().st_mtime, reverse=True)
    if not newest:
        return f"there is no other checkpoint in {path.parent}: give another path, or start without one"
    more = f" and {len(newest) - _NAMED} more" if len(newest) > _NAMED else ""
    return f"others in {path.parent}, newest first: {', '.join(other.name for other in newest[:_NAMED])}{more}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill, a crash or a full disk leaves the old file or the new one, never half.

    The file is written beside its target (Lightning's own way is through TMPDIR, a copy where that is another
    file system), forced to the disk and renamed. What killed processes of this machine left is removed. Streams to
    the file: no second copy of the checkpoint in memory. For `Trainer(plugins=[AtomicCheckpointIO()])`.

    The file that was there is kept as the previous one (see `training.previous_checkpoint`), unless it is damaged.

    Local paths only. Loads plain types only, unless `weights_only=False` is given.

    Args:
        side_file_bytes: the vectors of a memory with more bytes lie in a file beside the checkpoint (see
            `training.side_files`), which is written before it, and again only where they have changed.
        keep_previous: keep the previous file too, which takes twice the disk.
    """

    def __init__(self, side_file_bytes: int = SIDE_FILE_BYTES, keep_previous: bool = True):
        super().__init__()
        self.side_file_bytes, self.keep_previous = side_file_bytes, keep_previous
        self._written: dict[Path, int | None] = {}  # steps by this process: these need not be read again to be trusted

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            InputError: a remote path, a full disk (what was at `path` is kept), or a type that is not read back.
            TypeError: `storage_options` was given.
        """
        if storage_options is not None:
            raise TypeError(f"AtomicCheckpointIO knows no storage_options, got {storage_options!r}")
        if "://" in os.fspath(path):
            raise InputError(f"checkpoint path {path} is remote; give a local folder and copy from there")
        check_plain(checkpoint)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in (target.parent, target.parent / side_files.FOLDER):
            remove_leftovers(folder)
        try:
            _write(
                side_files.offload(checkpoint, target.parent, limit=self.side_file_bytes, suffix=target.suffix),
                target,
                keep=self.keep_previous and self._is_good(target, checkpoint.get(STEP)),
            )
        except (OSError, RuntimeError) as error:
            if not is_full(error):
                raise
            raise InputError(
                f"the disk of {target.parent} is full: {target.name} was not written, what was there is kept; "
                "free some space or set the ModelCheckpoint's dirpath to another disk, then resume"
            ) from error
        self._written[target.absolute()] = checkpoint.get(STEP)
        _remove_unnamed(target.parent)

    def _is_good(self, target: Path, step: int | None) -> bool:
        """Whether what a save of this step would replace is worth more than the previous file: it is whole, and
        of another step."""
        if not target.is_file():
            return True
        if target.absolute() in self._written:
            return step is None or self._written[target.absolute()] != step
        try:
            _check_file(target)
            _check_sums(target)
            if step is not None and read_numbers(target).get(STEP) == step:
                return False
        except DamagedError as error:
            log.warning("%s is replaced, %s is kept: %s", target, previous(target).name, error)
            return False
        return True

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it, the previous file, and the files beside it that no other checkpoint of its folder names."""
        super().remove_checkpoint(path)
        previous(Path(path)).unlink(missing_ok=True)
        _remove_unnamed(Path(path).parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """The checkpoint at `path`, by default on the CPU and with `weights_only`; errors as `read_checkpoint`."""
        return _read(Path(path), map_location=map_location, weights_only=weights_only is not False)


def _write(checkpoint: dict[str, Any], target: Path, *, keep: bool) -> None:
    with replacing(target, put=partial(put_in_place, keep=keep)) as file:
        torch.save(checkpoint, file)


def _remove_unnamed(folder: Path) -> None:
    """Remove what an overwritten or removed checkpoint alone has named; nothing while one cannot be read."""
    if not side_files.exist(folder):
        return
    try:
        found = [read_numbers(path) for path in folder.glob("*.ckpt")]
    except InputError as error:
        log.warning("files in %s are kept, needed or not: %s", folder / side_files.FOLDER, error)
        return
    side_files.remove_unnamed(folder, {name for checkpoint in found for name in side_files.named_by(checkpoint)})
