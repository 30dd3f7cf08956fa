from pathlib import Path

from lightning_app.reports.loss_curve import draw_loss
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
