"""`python main.py report`: the dashboard from a run's log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_app.reports.page import PLOTLY

Main = Callable[..., None]
RECORDS: list[dict[str, Any]] = [
    {"event": "plasticity_started", "step": 0, "shape": [1, 2]},
    {"step": 1, "train/ce": 2.5},
    {"event": "pruning_event", "step": 1, "cycle": 1, "heads": [[0, 1]], "scores": [0.125], "alive": [[1, 0]]},
]


@pytest.fixture
def run(folder: Path) -> Path:
    place = folder / "runs" / "heads" / "version_0"
    place.mkdir(parents=True)
    (place / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return place


def test_the_page_is_drawn_into_the_run(run: Path, main: Main, capsys: pytest.CaptureFixture[str]):
    main("report", run)
    page = (run / "dashboard.html").read_text()
    assert "<h1>heads/version_0</h1>" in page
    assert "2 → 1 heads" in page
    assert (run / PLOTLY).is_file()
    assert capsys.readouterr().out == f"page: {run}/dashboard.html\n"


def test_the_page_goes_where_it_is_asked_to(run: Path, main: Main, folder: Path):
    main("report", run, "--single_file", "--output", folder / "elsewhere" / "one.html")
    assert (folder / "elsewhere" / "one.html").stat().st_size > 3_000_000
    assert not (folder / "elsewhere" / PLOTLY).exists()
    assert [path.name for path in run.iterdir()] == ["log.jsonl"]


def test_a_fit_without_plasticity_has_a_page_of_its_curves(main: Main, trained: Path):
    main("report", trained)
    page = (trained / "dashboard.html").read_text()
    assert "No plasticity in this log" in page
    assert '"name":"val/ce"' in page


def test_what_cannot_be_drawn(run: Path, fails: Callable[..., str], folder: Path):
    assert "there is no folder nowhere" in fails("report", "nowhere")
    assert f"runs has no log.jsonl, from which the page is drawn; those with one below it: {run}" in fails(
        "report", folder / "runs"
    )
    (folder / "empty").mkdir()
    assert "the callback RunLog writes it" in fails("report", "empty")
    (folder / "empty" / "log.jsonl").write_text("")
    assert "holds no record yet" in fails("report", "empty")
    (folder / "empty" / "log.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "holds no whole record, 1 damaged line left out (1)" in fails("report", "empty")
    assert "a folder: give the name of the page in it" in fails("report", run, "--output", folder)
    assert "cannot write into" in fails("report", run, "--output", folder / "train.txt" / "page.html")
    assert "RUN_DIR" in fails("report")
