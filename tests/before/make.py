"""`python -m tests.before.make NAME ...` fits the kinds of `kinds/` that `runs/` lacks, and writes down what they give.

Nothing that is there is made anew: it is what code of its time has left. The checkpoint is that of step 6 of 8, so the
last steps of the log say how a run goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch

from lightning_app.cli import main
from tests.before.measured import (
    AGAIN,
    CHECKPOINT,
    HERE,
    RUNS,
    Record,
    numbers,
    outputs_of,
    place,
    queries_for,
    records,
    steps,
)
from tests.golden.runner import machine

LARGEST = 100_000  # bytes of a file
EXPORTED = ("pruned", "varda_gpt")  # models that no family of transformers computes: their code lies in the directory
TOPICS = {
    "harbour": ("the boat leaves the harbour", "a gull cries over the boat", "the tide lifts the old boat"),
    "kitchen": ("bread rises in a warm kitchen", "the cook salts the hot soup", "soup and bread stand on the table"),
    "sums": ("3 + 4 = 7 and 7 - 3 = 4", "2 x 5 = 10 and 10 / 2 = 5", "9 + 9 = 18 and 18 / 2 = 9"),
}
VAL = "the boat lifts the tide. the hot bread stands in the kitchen. 5 + 4 = 9.\n"


def write_texts() -> None:
    """Each line of a topic behind each other one."""
    (HERE / "text" / "train").mkdir(parents=True, exist_ok=True)
    for name, lines in TOPICS.items():
        text = "".join(f"{a}, {b}.\n" for a in lines for b in lines if a != b)
        (HERE / "text" / "train" / f"{name}.txt").write_text(text, encoding="utf-8")
    (HERE / "text" / "val.txt").write_text(VAL, encoding="utf-8")


def make(name: str) -> None:
    """Fit, keep, measure."""
    with working_folder() as folder:
        shutil.copytree(HERE / "text", folder / "text")
        main(["fit", *(f"--config={HERE / 'kinds' / each}.yaml" for each in ("base", name)), "--name", name])
        keep(folder / "runs" / name / "version_0", RUNS / name / "version_0")
    with working_folder() as folder:
        run = place(name, folder)
        write({"commit": commit(), "machine": machine(), **expected_of(run)}, RUNS / name / "expected.json")
        if name in EXPORTED:
            main(["export", "--ckpt_path", str(run / CHECKPOINT), "--output", "export"])
            shutil.make_archive(str(RUNS / name / "export"), "xztar", "export")  # it holds code: not for linters
    for file in (RUNS / name).rglob("*"):
        assert not file.is_file() or file.stat().st_size <= LARGEST, f"{file} has {file.stat().st_size:,} bytes"


def expected_of(run: Path) -> Record:
    """What the test compares with, but for the log."""
    checkpoint, config = run / CHECKPOINT, run / "config.yaml"
    queries = queries_for(checkpoint)
    main(["validate", "--config", str(config), "--ckpt_path", str(checkpoint)])
    main(["fit", "--config", str(config), "--init_from", str(checkpoint), "--name", AGAIN.name])
    return {
        "queries": queries,
        "outputs": outputs_of(checkpoint, queries),
        "validation": numbers(records(run / "log.jsonl")[-1]),
        "started": steps(records(AGAIN / "version_0" / "log.jsonl"))[1],
    }


@contextmanager
def working_folder() -> Iterator[Path]:
    before = Path.cwd()
    os.environ.pop("PL_GLOBAL_SEED", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def keep(run: Path, target: Path) -> None:
    """Config, log, and the checkpoint before the last one with the files that it names."""
    (target / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "log.jsonl"):
        shutil.copy(run / name, target / name)
    shutil.copy(run / "checkpoints" / "last-previous.ckpt", target / CHECKPOINT)
    for mark in torch.load(target / CHECKPOINT, weights_only=True).get("side_files", {}).values():
        beside = target / "checkpoints" / mark["file"]
        beside.parent.mkdir(exist_ok=True)
        shutil.copy(run / "checkpoints" / mark["file"], beside)


def commit() -> str:
    """The last one that changed the package, of which no file is changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()

    package = str(HERE.parent.parent / "lightning_app")
    assert not git("status", "--porcelain", package), "commit lightning_app/ first"
    return git("log", "-1", "--format=%H", "--", package)


def write(expected: Record, path: Path) -> None:
    """As JSON, an entry a line."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_texts()
    for kind in sys.argv[1:] or sorted(path.stem for path in (HERE / "kinds").glob("*.yaml") if path.stem != "base"):
        if (RUNS / kind).exists():
            print(f"{kind} is there, and stays as it is")
            continue
        try:
            make(kind)
        except BaseException:
            shutil.rmtree(RUNS / kind, ignore_errors=True)
            raise
