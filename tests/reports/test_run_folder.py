"""One class knows where all of a run lies: what is written by it is found by it, and nobody else spells a path."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.reports import run_folder
from lightning_app.reports.record import Numbers
from lightning_app.reports.run_folder import (
    RunFolder,
    checkpoints_below,
    previous,
    runs_below,
    versions_of,
    with_previous,
)
from tests.sources import nodes

PACKAGE = Path(run_folder.__file__).parent.parent


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "runs/heads/version_3")
    found.checkpoints_folder.mkdir(parents=True)
    return found


def test_the_names_are_those_that_runs_on_disk_have():
    run = RunFolder(Path("r"))
    assert [
        str(path)
        for path in (
            run.config_file,
            run.log_file,
            run.loss_picture,
            run.dashboard,
            run.categories,
            run.wandb_id,
            run.samples_folder,
            run.checkpoint("last"),
            run.importance("heads", 2),
            run.predictions(),
            run.predictions(1),
            previous(run.checkpoint("best")),
        )
    ] == [
        "r/config.yaml",
        "r/log.jsonl",
        "r/loss.png",
        "r/dashboard.html",
        "r/categories.html",
        "r/wandb_id.txt",
        "r/samples",
        "r/checkpoints/last.ckpt",
        "r/importance/heads_cycle_2.json",
        "r/predictions.jsonl",
        "r/predictions.rank1.jsonl",
        "r/checkpoints/best-previous.ckpt",
    ]


@pytest.mark.parametrize(
    ("path", "number", "name"),
    [
        ("runs/heads/version_12", 12, "heads"),
        ("runs/a/heads/version_0", 0, "heads"),
        ("copies/heads", None, "heads"),
        ("runs/heads/version_new", None, "version_new"),
    ],
)
def test_what_a_run_is_called(path: str, number: int | None, name: str):
    assert (RunFolder(Path(path)).number, RunFolder(Path(path)).name) == (number, name)


def test_a_checkpoint_belongs_to_the_run_that_wrote_it(run: RunFolder, tmp_path: Path):
    assert RunFolder.of(run.checkpoint("last")) == run
    assert RunFolder.of(tmp_path / "downloads/some.ckpt") is None


def test_what_is_there_is_found(run: RunFolder, tmp_path: Path):
    assert (run.checkpoints(), run.config(), run.records(), run.of_loggers()) == ({}, {}, [], {})
    assert run.samples() == ([], "")
    run.checkpoint("last").write_bytes(b"x")
    previous(run.checkpoint("last")).write_bytes(b"y")
    run.config_file.write_text("data: {seed: 1}")
    run.log_file.write_text(json.dumps({"step": 1, "train/ce": 2.5}) + "\nhalf")
    for number in (2, 10):
        (run.path / f"csv/version_{number}").mkdir(parents=True)
        (run.path / f"csv/version_{number}/metrics.csv").touch()
    assert run.checkpoints() == {"last": run.checkpoint("last")}
    assert with_previous(run.checkpoint("last")) == [run.checkpoint("last"), previous(run.checkpoint("last"))]
    assert run.config() == {"data": {"seed": 1}}
    assert run.records() == [Numbers(step=1, values={"train/ce": 2.5})]
    assert run.damage() == "1 damaged line left out (2)"
    assert list(run.of_loggers()) == ["CSV"]
    assert sorted(checkpoints_below(tmp_path)) == sorted(run.checkpoints_folder.iterdir())
    assert (runs_below(tmp_path), versions_of(run.path.parent)) == ([run], [run])


def test_runs_come_in_the_order_of_their_numbers(tmp_path: Path):
    for number in (2, 10, 1):
        (tmp_path / f"version_{number}").mkdir()
        (tmp_path / f"version_{number}/log.jsonl").write_text("{}" if number != 1 else "")
    assert [run.number for run in runs_below(tmp_path)] == [2, 10]  # nothing was logged by the other


def test_samples_are_read_as_they_were_written(run: RunFolder):
    run.write_samples(["one\ntwo", "three"], step=500)
    run.write_samples(["later"], step=1500)
    assert run.samples() == (["later"], "step 001500")
    run.write_samples(["the best", "of\n\n---\nthem"], step=None)
    assert run.samples() == (["the best", "of\n\n---\nthem"], "best")


def test_a_config_that_cannot_be_read_is_the_users_mistake(run: RunFolder):
    run.config_file.write_bytes(b"a: [")
    with pytest.raises(InputError, match=r"config\.yaml"):
        run.config()


SPELT = {"config.yaml", "log.jsonl", "loss.png", "dashboard.html", "categories.html", "wandb_id.txt", "best.txt"}
SPELT |= {"checkpoints", "last.ckpt", "best.ckpt", "samples", "importance", "version_", "-previous"}


def test_no_other_file_spells_a_path_of_a_run():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "run_folder.py"]
    found = [
        f"{path.relative_to(PACKAGE)}: {name}" for path in files for name in _names_in_paths(path) if name in SPELT
    ]
    assert len(files) > 150
    assert found == []


def _names_in_paths(path: Path) -> list[str]:
    """Words in what is put together with `/`, or handed to glob and what looks at the ends of a name."""
    words, text = [], path.read_text(encoding="utf-8")
    if not any(word in text for word in SPELT):
        return []  # parsing each takes a second
    for node in nodes(text):
        operands: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands = [node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ("glob", "rglob", "with_name", "removeprefix", "startswith", "endswith", "Path")
            operands = node.args if node.func.attr in called else []
        elif isinstance(node, ast.Compare):
            operands = node.comparators if "name" in ast.unparse(node.left) else []
        constants = [part for one in operands for part in ast.walk(one) if isinstance(part, ast.Constant)]
        words += [word for one in constants if isinstance(one.value, str) for word in one.value.strip("*").split("/")]
    return words
