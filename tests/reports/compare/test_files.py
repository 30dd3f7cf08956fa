"""The comparison for a paper: what its files say, and which are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from matplotlib import image

from lightning_app.errors import InputError
from lightning_app.reports.compare.files import write_csv, write_figure, write_latex
from lightning_app.reports.groups import against, groups_of
from tests.reports.compare.test_page import log, run


def test_the_tables_say_what_the_page_says(tmp_path: Path):
    groups = groups_of([run("a_b", log(2.2)), run("c & d", x=1)])
    write_csv(groups, groups[0], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a_b", "c & d"]
    bits, whole = groups[1].estimate("val/bpb"), against(groups[1], groups[0])
    assert bits is not None
    assert whole is not None
    assert [float(rows[1][f"val/bpb{end}"]) for end in ("", "_low", "_high")] == [bits.value, bits.low, bits.high]
    assert float(rows[1]["change_percent"]) == whole.value
    assert rows[0]["change_percent"] == ""
    write_latex(groups, groups[0], tmp_path / "t.tex")
    lines = (tmp_path / "t.tex").read_text().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrr}"
    assert [line.count(" & ") for line in lines if line.endswith(r"\\")] == [7, 7, 7]
    assert lines[5].startswith(r"c \& d & ")
    assert r"a\_b" in lines[4]


@pytest.mark.parametrize(("ending", "begin"), [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_figure_has_the_format_of_its_name(ending: str, begin: bytes, tmp_path: Path):
    path = tmp_path / f"f{ending}"
    write_figure([run("a $x", log(2.2)), run("b", x=1)], path, axis="tokens")
    assert path.read_bytes().startswith(begin)


def test_a_curve_of_one_point_is_seen(tmp_path: Path):
    steps = [log(level, steps=(10,)) for level in (2.0, 2.2)]
    write_figure([run("a", steps[0]), run("b", steps[1], x=1)], tmp_path / "f.png", axis="steps")
    pixels = image.imread(tmp_path / "f.png")[:, :700, :3]  # left of the legend
    assert (pixels.max(-1) - pixels.min(-1) > 0.3).sum() > 20  # coloured


def test_a_figure_that_cannot_be_drawn_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"must end in one of \.pdf, \.svg, \.png"):
        write_figure([run("a")], tmp_path / "f.jpg", axis="steps")
    with pytest.raises(InputError, match="no log of these runs has a curve over tokens"):
        write_figure([run("a", log(old=True))], tmp_path / "f.pdf", axis="tokens")
