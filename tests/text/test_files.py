"""Atomic writing: the old content stays where the new cannot be written."""

import errno
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.text.files import write_atomic


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
