import platform
import subprocess
import sys

import pytest

from lightning_app.training import allocator

COUNT_FAULTS = """
import resource, torch
torch.set_num_threads(1)
from lightning_app.training.allocator import tune_allocator
if {tuned}:
    assert tune_allocator()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    (torch.ones(16_000_000) * 2).sum()  # 64 MB: glibc itself keeps blocks up to 32 MiB, after the first
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(10):
    faults()
print(sum(faults() for _ in range(10)))
"""


def page_faults(*, tuned: bool) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS.format(tuned=tuned)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_stays_in_the_process():
    assert page_faults(tuned=True) < 0.1 * page_faults(tuned=False)


@pytest.mark.parametrize(("system", "libc"), [("Darwin", ""), ("Windows", ""), ("Linux", "")])
def test_elsewhere_it_says_that_it_did_nothing(monkeypatch, caplog, system, libc):
    monkeypatch.setattr(allocator.platform, "system", lambda: system)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: (libc, ""))
    assert allocator.tune_allocator() is False
    assert "not tuned" in caplog.text


def test_a_refusal_of_glibc_is_reported(monkeypatch, caplog):
    class Library:
        def mallopt(self, option: int, value: int) -> int:
            return 0

    monkeypatch.setattr(allocator.platform, "system", lambda: "Linux")
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library())
    assert allocator.tune_allocator() is False
    assert "refused" in caplog.text
