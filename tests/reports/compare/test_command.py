"""`python main.py compare`: which folders are runs, what they are called, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_app.reports.compare.command import read_runs
from lightning_app.reports.page import PLOTLY

Main = Callable[..., None]
RECORDS: list[dict[str, Any]] = [
    {"time": 1.0, "event": "started", "step": 0, "parameters": 1000},
    {"time": 2.0, "step": 5, "train/ce": 2.5},
    {"time": 2.0, "step": 5, "val/ce": 2.0, "val/ppl": 7.4, "val/bpb": 2.9, "val/acc": 0.25},
    {"time": 3.0, "event": "ended", "step": 5},
]


def write(place: Path, *, samples: str = "best.txt") -> Path:
    (place / "samples").mkdir(parents=True)
    (place / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (place / "config.yaml").write_text(f"seed_everything: 1\nname: {place.parent.name}\n")
    (place / "samples" / samples).write_text("One text\n\n---\n\nAnother\ntext\n")
    return place


@pytest.fixture
def runs(folder: Path) -> Path:
    for name in ("a/version_2", "a/version_10", "b/version_0"):
        write(folder / "runs" / name)
    (folder / "runs" / "empty" / "version_0").mkdir(parents=True)
    (folder / "runs" / "empty" / "version_0" / "log.jsonl").touch()  # a run that has just begun
    return folder / "runs"


def test_the_page_and_the_table(runs: Path, main: Main, folder: Path, capsys: pytest.CaptureFixture[str]):
    main("compare", runs / "a", runs / "b/version_0", "--output", folder / "out" / "report.html")
    page, out = (folder / "out" / "report.html").read_text(), capsys.readouterr().out
    assert "<h1>3 runs compared</h1>" in page
    assert (folder / "out" / PLOTLY).is_file()
    rows = [line.split() for line in out.splitlines() if line.startswith(("a/", "b/"))]
    assert [row[:5] for row in rows[:3]] == [
        [name, "2.9000", "2.0000", "7.40", "0.2500"] for name in ("a/version_2", "a/version_10", "b/version_0")
    ]
    assert [row[1:3] for row in rows[3:]] == [["1", "k"]] * 3
    assert out.endswith(f"page: {folder / 'out' / 'report.html'}\n")


def test_a_folder_of_runs_means_all_of_them_in_the_order_of_their_numbers(runs: Path):
    found = read_runs([runs])
    assert [run.label for run in found] == ["a/version_2", "a/version_10", "b/version_0"]
    assert [run.label for run in read_runs([runs / "a" / "version_10", runs / "b"])] == ["a", "b"]
    assert [run.label for run in read_runs([runs / "a"], ["old", "new"])] == ["old", "new"]


def test_what_is_read_of_a_run(runs: Path):
    (run,) = read_runs([runs / "b" / "version_0"])
    assert run.samples == ["One text", "Another\ntext"]
    assert (run.samples_from, run.seed, run.measure("val/bpb"), run.steps) == ("best", (1, None), 2.9, 5)
    (other,) = read_runs([write(runs / "c" / "version_0", samples="step_000020.txt")])
    assert other.samples_from == "step 000020"


def test_a_damaged_line_is_left_out_and_named(runs: Path, capsys: pytest.CaptureFixture[str]):
    with (runs / "b/version_0/log.jsonl").open("a") as file:
        file.write('7\n[1]\n{"step": 9, "val/ce": 1')
    (run,) = read_runs([runs / "b"])
    assert (len(run.records), run.measure("val/ce")) == (4, 2.0)
    assert "log.jsonl: 3 damaged lines left out (5, 6, 7)" in capsys.readouterr().err


def test_a_fit_is_compared_with_intervals_over_passages(main: Main, trained: Path, capsys: pytest.CaptureFixture[str]):
    (run,) = read_runs([Path("runs/tiny")])
    assert run.passages is not None
    nats, tokens, _, right = run.passages.sum(0)
    assert nats / tokens == pytest.approx(run.measure("val/ce"), rel=1e-4)
    assert right / tokens == pytest.approx(run.measure("val/acc"), rel=1e-4)
    first, last = run.flops_per_token
    assert (run.total("tokens"), run.total("train_flops")) == (6 * 4 * 16, 6 * 4 * 16 * (first or 0))
    assert last == pytest.approx(first, rel=1e-4)  # that which follows from the logged rates
    main("compare", "runs", "--output", "report.html", "--axis", "tokens")
    assert "32 passages" in capsys.readouterr().out
    assert 'value="tokens" checked' in Path("report.html").read_text()


def test_what_cannot_be_compared(runs: Path, fails: Callable[..., str], folder: Path):
    one = runs / "b" / "version_0"
    assert "there is no folder nowhere" in fails("compare", "nowhere")
    (folder / "nothing").mkdir()
    assert "nothing has no log.jsonl, and no folder below it has one" in fails("compare", "nothing")
    assert "holds no record yet" in fails("compare", runs / "empty" / "version_0")
    assert "is given twice" in fails("compare", one, runs)
    assert "choose one of steps, time" in fails("compare", one, "--axis", "tokens")
    assert "there are 2 labels for 1 runs" in fails("compare", one, "--labels", "x", "y")
    assert "give each run one of its own" in fails("compare", runs / "a", "--labels", "x", "x")
    assert "a folder: give the name of the page in it" in fails("compare", one, "--output", folder)
    (one / "config.yaml").write_text("a: [")
    assert "is not readable YAML" in fails("compare", one)
    (one / "log.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "holds no whole record, 1 damaged line left out (1)" in fails("compare", one)
    assert "RUN_DIR" in fails("compare")
