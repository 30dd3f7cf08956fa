from pathlib import Path

from lightning_app.reports.loss_curve import draw_loss, levels
from lightning_app.reports.series import best_validation, series
from tests.reports.conftest import typed

RECORDS = typed(
    [
        {"event": "started", "step": 0},
        {"step": 5, "train/ce": 3.0},
        {"step": 5, "val/ce": 3.5},
        {"step": 10, "train/ce": None},
        {"step": 10, "val/ce": 2.5},
        {"step": 15, "val/ce": 2.75},
    ]
)


def test_series_leaves_out_what_is_missing():
    assert series(RECORDS, "train/ce") == ([5], [3.0])
    assert series(RECORDS, "val/ce") == ([5, 10, 15], [3.5, 2.5, 2.75])
    assert series(RECORDS, "val/f1") == ([], [])


def test_best_is_the_lowest_cross_entropy():
    best = best_validation(RECORDS)
    assert best is not None
    assert best.step == 10
    assert best_validation(RECORDS[:2]) is None


def test_the_picture_is_a_png_that_shows_the_records(tmp_path: Path):
    draw_loss(RECORDS, tmp_path / "all.png", title="t")
    draw_loss([], tmp_path / "none.png", title="t")
    pictures = [(tmp_path / name).read_bytes() for name in ("all.png", "none.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]


def test_counts_and_compressors_are_lines_in_the_units_of_the_picture(tmp_path: Path):
    validation = {"step": 10, "val/ce": 2.0, "val/bpb": 1.0}
    closed = {"event": "closed", "step": 10, "val/bpb": 1.0, "lzma_bpb": 1.5, "trigrams_bpb": 1.25}
    assert levels(typed([validation, closed])) == [("trigrams", 2.5), ("LZMA2", 3.0)]
    assert levels(typed([closed])) == levels(typed([validation])) == []
    draw_loss(typed([validation, closed]), tmp_path / "with.png", title="t")
    draw_loss(typed([validation]), tmp_path / "without.png", title="t")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
