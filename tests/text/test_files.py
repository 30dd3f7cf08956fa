"""Atomic writing: the old content stays where the new cannot be written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.text.files import temporary_name, write_atomic


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"no space left in .*: up to 3 bytes are needed, [\d,]+ are free"),
        (errno.EACCES, r"cannot write into .*choose a folder"),
    ],
)
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, number, said):
    path = tmp_path / "file"
    write_atomic(path, b"one")
    original = Path.write_bytes

    def fail(self, data):
        original(self, data[:1])
        raise OSError(number, "simulated")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=said):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    own = temporary_name(tmp_path / "other")
    left, strange = tmp_path / own.name.replace(str(os.getpid()), str(process.pid)), tmp_path / ".mine.machine-1.tmp"
    for path in (own, left, strange):
        path.write_text("half")
    write_atomic(tmp_path / "file", b"one")
    assert sorted(tmp_path.iterdir()) == sorted([own, strange, tmp_path / "file"])
