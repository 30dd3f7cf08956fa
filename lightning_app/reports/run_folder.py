"""A run's folder, RUNS_DIR/NAME/version_N. Every path in it is spelt here, for those who write and those who read.

config.yaml                      the options in force
log.jsonl                        numbers and events; see `log`
checkpoints/{last,best}.ckpt     and what the last save of each replaced, {last,best}-previous.ckpt
samples/step_000500.txt          texts written in training; best.txt: those of the best checkpoint
importance/heads_cycle_1.json    what plasticity has measured
predictions.jsonl                of `predict`; with several ranks predictions.rank0.jsonl, ...
loss.png, dashboard.html, categories.html
events.out.tfevents*, csv/, wandb/, wandb_id.txt    of loggers
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_app.errors import InputError
from lightning_app.former import with_options_of_today
from lightning_app.io import write_atomic
from lightning_app.reports import log
from lightning_app.reports.events import parsed
from lightning_app.reports.record import Record
from lightning_app.yaml_file import read_yaml

CHECKPOINTS, CHECKPOINT = "checkpoints", ".ckpt"
PREVIOUS = "-previous"
VERSION = "version_"
CSV = "csv"
OF_LOGGERS = {
    "TensorBoard": "events.out.tfevents*",
    "CSV": f"{CSV}/{VERSION}*/metrics.csv",
    "Weights & Biases": "wandb/*run-*",
}
BETWEEN = "\n\n---\n\n"  # two texts in a file of samples
LARGEST = 2**20  # bytes of a file of samples that are read


@dataclass(frozen=True)
class RunFolder:
    """Names and contents of what lies in `path`; nothing is read before it is asked for."""

    path: Path

    @classmethod
    def of(cls, checkpoint: Path) -> RunFolder | None:
        """The folder of the run which has written a checkpoint; None where the checkpoint does not lie in one."""
        return cls(checkpoint.parent.parent) if checkpoint.parent.name == CHECKPOINTS else None

    # What it is called

    @property
    def number(self) -> int | None:
        """N of version_N."""
        digits = self.path.name.removeprefix(VERSION)
        return int(digits) if self.path.name.startswith(VERSION) and digits.isdecimal() else None

    @property
    def name(self) -> str:
        """NAME; that of the folder itself where it has no number."""
        path = self.path.absolute()
        return path.name if self.number is None else path.parent.name

    @property
    def title(self) -> str:
        """NAME/version_N."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}"

    # Where things lie

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log_file(self) -> Path:
        return self.path / log.FILE_NAME

    @property
    def loss_picture(self) -> Path:
        return self.path / "loss.png"

    @property
    def dashboard(self) -> Path:
        return self.path / "dashboard.html"

    @property
    def categories(self) -> Path:
        return self.path / "categories.html"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id.txt"

    @property
    def samples_folder(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / CHECKPOINTS

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint "last" or "best" lies."""
        return self.checkpoints_folder / f"{name}{CHECKPOINT}"

    def importance(self, kind: str, cycle: int) -> Path:
        return self.path / "importance" / f"{kind}_cycle_{cycle}.json"

    def predictions(self, rank: int | None = None) -> Path:
        return self.path / ("predictions.jsonl" if rank is None else f"predictions.rank{rank}.jsonl")

    # What is there

    def checkpoints(self) -> dict[str, Path]:
        """Path by name, of "best" and "last"."""
        paths = {name: self.checkpoint(name) for name in ("best", "last")}
        return {name: path for name, path in paths.items() if path.is_file()}

    def of_loggers(self) -> dict[str, Path]:
        """The newest file (or folder) of each kind of logger."""
        found = {name: sorted(self.path.glob(pattern)) for name, pattern in OF_LOGGERS.items()}
        return {name: paths[-1] for name, paths in found.items() if paths}

    def config(self) -> dict[str, Any]:
        """The options that were in force, where they stand today; empty where there is no such file.

        Raises:
            InputError: it cannot be read.
        """
        return config_of_run(self.config_file) if self.config_file.is_file() else {}

    def records(self) -> list[Record]:
        """The records of the log; none where there is no log."""
        return [parsed(one) for one in log.read_log(self.path)] if self.log_file.is_file() else []

    def known_records(self) -> list[Record]:
        """The same for a page, which needs some.

        Raises:
            InputError: there is no such folder, no log in it or nothing in the log.
        """
        if not self.path.is_dir():
            raise InputError(f"there is no folder {self.path}: give that of a run, such as runs/article_gpt/version_0")
        if not self.log_file.is_file():
            below = ", ".join(sorted(str(folder.path) for folder in runs_below(self.path))[-5:])
            remedy = f"those with one below it: {below}" if below else "a fit with the callback RunLog writes it"
            raise InputError(f"{self.path} has no {log.FILE_NAME}, from which the page is drawn; {remedy}")
        if records := self.records():
            return records
        why = self.damage()
        raise InputError(
            f"{self.log_file} holds no whole record, {why}: it is damaged, or not the log of a run"
            if why
            else f"{self.log_file} holds no record yet: wait for the first step, or give the folder of another run"
        )

    def damage(self) -> str:
        """Which lines of the log are left out; "" where all are whole."""
        return log.damage(self.path)

    # Samples

    def samples(self) -> tuple[list[str], str]:
        """Texts of the best checkpoint, else the last ones that were drawn in training, and what they are called."""
        files = [self._samples("best"), *sorted(self.samples_folder.glob("step_*.txt"), reverse=True)]
        for path in files:
            if path.is_file():
                with path.open(encoding="utf-8", errors="replace") as file:
                    text = file.read(LARGEST)
                return [one.strip("\n") for one in text.split(BETWEEN) if one.strip()], path.stem.replace("_", " ")
        return [], ""

    def write_samples(self, texts: Sequence[str], *, step: int | None) -> None:
        """Write the samples of a step, or (None) of the best checkpoint."""
        path = self._samples("best" if step is None else f"step_{step:06d}")
        write_atomic(path, (BETWEEN.join(texts) + "\n").encode())

    def _samples(self, name: str) -> Path:
        return self.samples_folder / f"{name}.txt"


# Several runs


def runs_below(folder: Path) -> list[RunFolder]:
    """The runs somewhere below a folder whose log is not empty, version_2 before version_10."""
    found = [path.parent for path in folder.rglob(log.FILE_NAME) if path.stat().st_size]
    return [RunFolder(path) for path in sorted(found, key=_natural)]


def _natural(path: Path) -> list[Any]:
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in path.parts]


def versions_of(runs: Path) -> list[RunFolder]:
    """The runs of one name: RUNS_DIR/NAME/version_*."""
    return [RunFolder(path) for path in runs.glob(f"{VERSION}*")]


def checkpoints_below(runs: Path, name: str = "*") -> list[Path]:
    """All of a name in the runs somewhere below a folder."""
    return list(runs.rglob(f"{VERSION}*/{CHECKPOINTS}/{name}{CHECKPOINT}"))


# A checkpoint that is overwritten, and the previous file


def previous(path: Path) -> Path:
    """Where the file lies that the last save of `path` replaced: last-previous.ckpt beside last.ckpt."""
    return path.with_name(f"{path.stem}{PREVIOUS}{path.suffix}")


def with_previous(path: Path) -> list[Path]:
    """The checkpoint at `path` and the previous file, as far as they are there."""
    return [file for file in (path, previous(path)) if file.exists()]


def config_of_run(path: Path) -> dict[str, Any]:
    """What a config says that was in force, see `RunFolder.config`; empty where it holds no mapping."""
    config = read_yaml(path)
    try:
        return dict(with_options_of_today(config)) if isinstance(config, dict) else {}
    except InputError:  # an option that is gone: it was in force nevertheless
        return dict(config)
