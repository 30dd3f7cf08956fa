"""`python main.py compress` and `decompress`: a file as a short archive, by any trained model, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lightning_app.errors import InputError
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.training.command_options import CheckpointOptions

ENDING = ".lmz"
File = Annotated[Path, Parameter(name="FILE")]


def compress(
    file: File,
    /,
    *,
    model: CheckpointOptions,
    output: Path | None = None,
    overwrite: bool = False,
    adapt: bool = False,
    lr: float | None = None,
    decay: float | None = None,
) -> None:
    """Write the archive of a file, and print its size.

    Args:
        file: any file.
        output: the archive; FILE.lmz without it.
        overwrite: replace a file that is there.
        adapt: learn from what has been written: slower, and shorter for a long file.
        lr: of --adapt: how far a weight goes in a step; without it 3e-4.
        decay: of --adapt: the way back; without it 1e-3.
    """
    given = {name: value for name, value in (("lr", lr), ("decay", decay)) if value is not None}
    if given and not adapt:
        raise InputError(f"--{next(iter(given))} says how a model adapts: give --adapt, too, or leave it out")
    options = AdaptationOptions(**given) if adapt else None
    output = output or file.with_name(f"{file.name}{ENDING}")
    data = _read(file)
    _check(output, overwrite=overwrite)
    from lightning_app.compression.command import write_archive

    write_archive(data, model, options, source=file, output=output)


def decompress(file: File, /, *, model: CheckpointOptions, output: Path | None = None, overwrite: bool = False) -> None:
    """Write the file that is in an archive.

    Args:
        file: an archive.
        output: the file; FILE without .lmz if not given.
        overwrite: replace a file that is there.
    """
    if output is None and file.suffix != ENDING:
        raise InputError(f"{file} does not end in {ENDING}: say where the file goes (--output)")
    output = output or file.with_suffix("")
    archive = _read(file)
    _check(output, overwrite=overwrite)
    from lightning_app.compression.command import write_original

    write_original(archive, model, output=output)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _check(output: Path, *, overwrite: bool) -> None:
    """Before anything is computed."""
    if output.exists() and not (overwrite and output.is_file()):
        raise InputError(f"{output} exists: choose another --output, or --overwrite it")
