import pytest

from lightning_app.training.warmup import linear_warmup, warmup_cosine

SQRT_HALF = 0.7071067811865476


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (6, 0.1 + 0.9 * (1 + SQRT_HALF) / 2),
        (8, 0.55),
        (10, 0.1 + 0.9 * (1 - SQRT_HALF) / 2),
        (12, 0.1),
        (13, 0.1),
        (1000, 0.1),
    ],
)
def test_table(step, factor):
    assert warmup_cosine(step, warmup_steps=4, total_steps=12, min_ratio=0.1) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "warmup_steps", "total_steps", "factor"),
    [
        (0, 0, 10, 1.0),
        (5, 0, 10, 0.5),
        (10, 0, 10, 0.0),
        (2, 3, 3, 1.0),
        (3, 3, 3, 0.0),
        (0, 0, 0, 0.0),
        (1, 4, None, 0.5),
        (4, 4, None, 1.0),
        (10**6, 4, None, 1.0),
    ],
)
def test_edges(step, warmup_steps, total_steps, factor):
    found = warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, min_ratio=0.0)
    assert found == pytest.approx(factor, abs=1e-15)


def test_a_weight_rises_in_a_line_and_stays():
    assert [linear_warmup(step, warmup_steps=4) for step in (0, 1, 3, 4, 9)] == [0, 0.25, 0.75, 1, 1]
    assert linear_warmup(0, warmup_steps=0) == 1
