"""The articles in data/articles: long enough, original with respect to each other, plain text."""

import re
from collections import Counter
from pathlib import Path

import pytest

ARTICLES = Path(__file__).parent.parent / "data" / "articles"
TRAIN = sorted((ARTICLES / "train").glob("*.txt"))
VAL = sorted((ARTICLES / "val").glob("*.txt"))
RUN = 8  # words


def words(path: Path) -> list[str]:
    return re.findall(r"\w+", path.read_text(encoding="utf-8").lower())


def runs(path: Path) -> list[tuple[str, ...]]:
    w = words(path)
    return [tuple(w[i : i + RUN]) for i in range(len(w) - RUN + 1)]


def test_counts():
    assert len(TRAIN) >= 14
    assert len(VAL) == 2
    assert sum(len(words(p)) for p in TRAIN) >= 28_000


@pytest.mark.parametrize("path", TRAIN + VAL, ids=lambda p: p.stem)
def test_an_article_is_long_enough_plain_and_does_not_repeat_itself(path):
    assert len(words(path)) >= 1_800
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert "\r" not in text
    assert "\t" not in text
    repeated = [" ".join(run) for run, n in Counter(runs(path)).items() if n > 1]
    assert not repeated, repeated


def test_no_run_of_eight_words_is_shared_between_training_and_validation():
    train = {run for path in TRAIN for run in runs(path)}
    shared = [" ".join(run) for path in VAL for run in runs(path) if run in train]
    assert len(train) > 20_000  # the set that is compared with is not empty by accident
    assert not shared, shared
