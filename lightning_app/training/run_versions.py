"""RUNS_DIR/NAME/version_N: a run claims its folder before it writes anything else."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lightning_app.errors import InputError
from lightning_app.reports.run_folder import VERSION, versions_of

# Those of torchrun, Lightning's launcher, SLURM and LSF, and of nodes: each but the first process finds one above 0.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
_claimed: list[Path] = []  # folders that this process made, each after those in which it lies


def next_version(runs: Path) -> str:
    """ "version_N" with the first N above all that are there."""
    taken = [run.number for run in versions_of(runs) if run.number is not None]
    return f"{VERSION}{max(taken, default=-1) + 1}"


def claim_version(runs: Path) -> Path:
    """Make the folder of the next version, which no other run then takes.

    Only the first of several ranks does: the others get a name, until `RunLog` tells them the first one's.

    Raises:
        InputError: something else lies there. What else a disk may say is for `run_place` to put into words.
    """
    while True:
        folder = runs / next_version(runs)
        if not is_first_process():
            return folder
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            runs.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{runs} lies at or below a file: give another --runs_dir or --name") from error
        try:
            folder.mkdir()
        except (FileExistsError, FileNotFoundError):  # another run took it, or removed `runs` as it was empty
            continue
        _claimed.extend(reversed(missing))
        return folder


def release_empty() -> None:
    """Remove what this process claimed and never wrote to: a command that was refused leaves no folder."""
    while _claimed:
        with suppress(OSError):  # something lies in it
            _claimed.pop().rmdir()


def is_first_process() -> bool:
    """Whether this is the first of a run's processes, as far as those that started it say."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)
