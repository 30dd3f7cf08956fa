"""Symbols come back, in as many bits as their probabilities say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_app.compression.coder import TOTAL, Decoder, Encoder, frequencies


def coded(counts: np.ndarray, symbols: np.ndarray) -> bytes:
    encoder, ends = Encoder(), counts.cumsum()
    for symbol in symbols:
        encoder.put(int(ends[symbol] - counts[symbol]), int(counts[symbol]), int(ends[-1]))
    return encoder.finish()


def decoded(counts: np.ndarray, data: bytes, number: int) -> list[int]:
    decoder, ends, found = Decoder(data), counts.cumsum(), []

    def find(at: int) -> tuple[int, int]:
        found.append(int(np.searchsorted(ends, at, side="right")))
        return int(ends[found[-1]] - counts[found[-1]]), int(counts[found[-1]])

    for _ in range(number):
        decoder.get(int(ends[-1]), find)
    return found


@pytest.mark.parametrize("concentration", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("vocab_size", [1, 2, 257, 49_152])
def test_symbols_come_back_in_as_many_bits_as_they_have(vocab_size, concentration):
    draw = np.random.default_rng(vocab_size)
    p = draw.dirichlet(np.full(vocab_size, concentration))
    counts, symbols = frequencies(p), draw.choice(vocab_size, 500, p=p)
    data = coded(counts, symbols)
    bits = -np.log2(counts[symbols] / TOTAL).sum()
    assert bits / 8 - 1 < len(data) <= bits / 8 + 1.01
    assert decoded(counts, data, 500) == symbols.tolist()


@settings(max_examples=80)
@given(st.lists(st.integers(1, 2**20), min_size=2, max_size=12), st.data())
def test_any_counts_and_symbols(counts, data):
    symbols = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=60)), dtype=int)
    assert decoded(np.array(counts), coded(np.array(counts), symbols), len(symbols)) == symbols.tolist()


def test_a_carry_runs_through_all_bytes_before():
    counts = np.array([2**24 - 1, 1])
    for likely in range(1, 4):  # after the last symbol all bytes are 255, until a carry turns them over
        symbols = np.array([1] * 3 + [0] * likely * 700 + [1, 1])
        assert decoded(counts, coded(counts, symbols), len(symbols)) == symbols.tolist()


@pytest.mark.parametrize("p", [[1.0, 0.0, 0.0], [0.5, 0.5], [1e-300, 1.0], [1 / 49_152] * 49_152, [1e-9] * 7 + [1]])
def test_no_symbol_is_impossible_and_none_costs_more_than_its_probability_says(p):
    p = np.array(p)
    counts = frequencies(p)
    assert counts.sum() == TOTAL
    assert counts.min() >= 1
    likely = p > 1e-5
    assert (np.log2(p[likely] / p.sum()) - np.log2(counts[likely] / TOTAL)).max() < 0.01
