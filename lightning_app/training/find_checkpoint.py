"""What "last" and "best" mean: a file that is whole, of the newest run that has one."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lightning_app.duration import in_words
from lightning_app.errors import DamagedError, InputError
from lightning_app.reports.run_folder import PREVIOUS, RunFolder, checkpoints_below, previous, with_previous
from lightning_app.training.checkpoint_io import read_checkpoint, read_numbers
from lightning_app.training.checkpoint_keys import STEP

log = logging.getLogger(__name__)


def find_checkpoint(path: str, runs: Path) -> str:
    """A path as it is; "last" or "best": the newest of that name in the folders `version_*` somewhere below `runs`.

    A line on stderr says which one it is, of which run, and how old.

    Where it is damaged the newest whole one is taken, by its step, and a line says so: of the same run, else of the
    version before. For "last" that may be a best checkpoint, from which a run can go on as well.

    Raises:
        InputError: there is none.
    """
    if path in ("last", "best"):
        found = _newest(path, runs)
        _say(found)
        return str(found)
    if not Path(path).exists():
        near = sorted(str(file) for file in checkpoints_below(runs))
        raise InputError(f"there is no checkpoint {path}; those in {runs}: {', '.join(near) or 'none'}")
    if RunFolder(Path(path)).checkpoint("best").is_file():
        raise InputError(f"{path} is the folder of a run: give {RunFolder(Path(path)).checkpoint('best')}")
    _say(Path(path))
    return path


@rank_zero_only
def _say(path: Path) -> None:
    run, step = RunFolder.of(path), _step(path) if path.is_file() else -1
    age = f"{in_words(time.time() - path.stat().st_mtime)} old"
    told = [*([run.title] if run else []), *([f"step {step:,}"] if step >= 0 else []), age]
    print(f"checkpoint: {path} ({', '.join(told)})", file=sys.stderr)


def whole_or_previous(path: Path) -> Path:
    """The file at `path`, or where it is damaged or gone the previous one; a line says so.

    Raises:
        DamagedError: both are damaged.
    """
    return _first_whole(path, [previous(path)])


def _newest(name: str, runs: Path) -> Path:
    found = [path for ending in ("", PREVIOUS) for path in checkpoints_below(runs, f"{name}{ending}")]
    if not found:
        raise InputError(f"there is no {name}.ckpt in {runs}/**/version_*/checkpoints: train first, or give a path")
    wanted = [run.checkpoint(name) for run in _in_order(found)]
    return _first_whole(wanted[0], (other for path in wanted for other in _instead_of(path, first=wanted[0])))


def _in_order(found: list[Path]) -> list[RunFolder]:
    """The runs of these checkpoints: that which was written to last, then the others of its name, then the rest."""
    times: dict[RunFolder, float] = {}
    for path in found:
        run = RunFolder.of(path)
        assert run is not None
        times[run] = max(times.get(run, 0.0), path.stat().st_mtime)
    newest = max(times, key=times.__getitem__)
    siblings = [run for run in times if run.path.parent == newest.path.parent and run != newest]
    rest = times.keys() - {newest, *siblings}
    return [newest, *sorted(siblings, key=_number, reverse=True), *sorted(rest, key=times.__getitem__, reverse=True)]


def _number(run: RunFolder) -> int:
    return -1 if run.number is None else run.number


def _instead_of(path: Path, *, first: Path) -> Iterator[Path]:
    """The other files of its run, those of higher steps first; of an older run the file itself before them."""
    if path != first:
        yield path
    names = ("last", "best") if path.stem == "last" else (path.stem,)
    others = [file for name in names for file in with_previous(path.with_name(f"{name}{path.suffix}")) if file != path]
    yield from sorted(others, key=_step, reverse=True)  # of equal steps the one of the same name


def _step(path: Path) -> int:
    try:
        return int(read_numbers(path)[STEP])
    except (InputError, KeyError):
        return -1


def _first_whole(wanted: Path, others: list[Path] | Iterator[Path]) -> Path:
    """`wanted` if it is whole, else the first of the others that is.

    Raises:
        DamagedError: none is; of the one that was wanted.
    """
    damage = _damage(wanted)
    if damage is None:
        return wanted
    for path in others:
        if path.exists() and _damage(path) is None:
            log.warning("%s; %s of step %d is taken instead", str(damage).partition(";")[0], path, _step(path))
            return path
    raise damage


def _damage(path: Path) -> DamagedError | None:
    if not path.exists():
        return DamagedError(f"there is no {path}, as if a process was killed while it wrote it")
    try:
        if path.is_file():  # a sharded one is a folder
            read_checkpoint(path, mmap=True)
    except DamagedError as error:
        return error
    except InputError:  # not damaged, but nothing that is read: it is said where it is read
        return None
    return None
