import pytest

from lightning_app.data.verbatim import verbatim_share, word_runs


def test_word_runs_ignore_case_and_punctuation():
    assert list(word_runs("One, two. THREE", 2)) == [("one", "two"), ("two", "three")]
    assert list(word_runs("one", 2)) == []


def test_verbatim_share_counts_runs_across_documents_separately():
    sampled = "a b c d e"  # runs of 3: abc, bcd, cde
    assert verbatim_share(sampled, ["x a b c y", "c d e"], run=3) == pytest.approx(2 / 3)
    assert verbatim_share(sampled, ["a b", "c"], run=3) == 0
    assert verbatim_share("a", ["a"], run=3) == 0
