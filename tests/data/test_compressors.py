"""What compressors need for a text once they have read another."""

import importlib.util
import lzma
import random
import shutil
import time

import pytest

from lightning_app.data.compressors import bits_per_byte, installed, lzma_size, ppmd_size, zpaq_archive, zpaq_size

here = {"lzma": True, "ppmd": importlib.util.find_spec("pyppmd") is not None, "zpaq": shutil.which("zpaq") is not None}
SIZES = [
    pytest.param(size, id=name, marks=pytest.mark.skipif(not here[name], reason=f"{name} is not installed"))
    for name, size in (("lzma", lzma_size), ("ppmd", ppmd_size), ("zpaq", zpaq_size))
]


def words(n: int, seed: int) -> bytes:
    vocabulary = (b"the ", b"model ", b"learns ", b"what ", b"it ", b"forgets ")
    return b"".join(random.Random(seed).choices(vocabulary, k=n))[:n]


def test_what_is_installed_is_found():
    assert [one.name for one in installed()] == [name for name, is_here in here.items() if is_here]


@pytest.mark.parametrize("size", SIZES)
def test_a_text_that_was_seen_costs_almost_nothing_and_noise_costs_eight_bits(size):
    noise = random.Random(0).randbytes(20_000)
    assert bits_per_byte(size, noise, after=noise) < 0.2
    assert bits_per_byte(size, noise, after=b"") == pytest.approx(8, abs=0.6)  # zpaq names files and dates


@pytest.mark.parametrize("size", SIZES)
def test_what_was_read_before_helps(size):
    """As long as it is one block for the compressor. Each word is drawn from six: 2.585 bits for 5.5 bytes."""
    before, text = words(40_000, seed=1), words(4_000, seed=2)
    alone, after = (bits_per_byte(size, text, after=read) for read in (b"", before))
    assert 0.45 < after < alone


@pytest.mark.skipif(not here["zpaq"], reason="zpaq is not installed")
def test_an_archive_does_not_know_what_time_it_is():
    """It has room for dates; what they compress to differs from one to another."""
    archive = zpaq_archive(b"what it learns")
    time.sleep(1.1)
    assert zpaq_archive(b"what it learns") == archive


@pytest.mark.parametrize("n", [1, 4096, 4097, 50_000])
def test_a_dictionary_as_large_as_the_text_compresses_as_well(n: int):
    data = words(n, seed=1)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    assert lzma_size(data) == len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))
