import lzma
import random

import pytest

from lightning_app.data.compression import lzma_bits_per_byte, verbatim_share, word_runs


def test_a_text_that_was_seen_costs_almost_nothing_and_noise_costs_eight_bits():
    noise = random.Random(0).randbytes(20_000)
    assert lzma_bits_per_byte(noise, noise) < 0.2
    assert lzma_bits_per_byte(b"", noise) == pytest.approx(8, abs=0.05)


@pytest.mark.parametrize("n", [1, 4096, 4097, 50_000])
def test_a_dictionary_as_large_as_the_text_compresses_as_well(n: int):
    data = b"".join(random.Random(1).choices((b"the ", b"model ", b"learns ", b"what ", b"it ", b"forgets "), k=n))[:n]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    whole, empty = (len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters)) for text in (data, b""))
    assert lzma_bits_per_byte(b"", data) == 8 * (whole - empty) / n


def test_word_runs_ignore_case_and_punctuation():
    assert list(word_runs("One, two. THREE", 2)) == [("one", "two"), ("two", "three")]
    assert list(word_runs("one", 2)) == []


def test_verbatim_share_counts_runs_across_documents_separately():
    sampled = "a b c d e"  # runs of 3: abc, bcd, cde
    assert verbatim_share(sampled, ["x a b c y", "c d e"], run=3) == pytest.approx(2 / 3)
    assert verbatim_share(sampled, ["a b", "c"], run=3) == 0
    assert verbatim_share("a", ["a"], run=3) == 0
