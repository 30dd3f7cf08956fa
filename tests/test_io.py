"""Atomic writing: the old content stays where the new cannot be written."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.io import replacing, temporary, temporary_name, write_atomic

ROOT = Path(__file__).parent.parent


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

    def fail(descriptor):
        raise OSError(number, "simulated")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=said):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_it_is_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"one")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"tw")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def of_process(number: int, path: Path) -> Path:
    name = temporary_name(path)
    return name.with_name(name.name.replace(f"-{os.getpid()}.tmp", f"-{number}.tmp"))


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    target = tmp_path / "other"
    running, strange = of_process(os.getppid(), target), tmp_path / ".mine.machine-1.tmp"
    same_number = of_process(os.getpid(), tmp_path / "third")  # a container counts from 1 again
    for path in (running, strange, same_number, of_process(process.pid, target)):
        path.write_text("half")
    with temporary(target) as in_use:
        in_use.mkdir()
        write_atomic(tmp_path / "file", b"one")
        assert sorted(tmp_path.iterdir()) == sorted([in_use, running, strange, tmp_path / "file"])
    assert sorted(tmp_path.iterdir()) == sorted([running, strange, tmp_path / "file"])


def test_nobody_else_renames_what_is_written():
    """One writer for all: who has a way of their own has a reason."""
    known = {
        "lightning_app/training/previous_checkpoint.py": "two renames, by which the previous file is kept",
        "lightning_app/memory/mapped.py": "a file without a name, which is never renamed",
        "lightning_app/data/tokenizers/sources.py": "a folder that is gone afterwards",
        "lightning_app/api.py": "a folder that is gone afterwards",
        "experiments/tuning.py": "a folder that is gone afterwards",
    }
    own_way = re.compile(r"\bos\.(replace|rename|fsync)\(|\bimport tempfile|\.tmp\"")
    files = [path for place in ("lightning_app", "experiments") for path in (ROOT / place).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if own_way.search(path.read_text(encoding="utf-8"))]
    assert len(files) > 150
    assert set(found) == {"lightning_app/io.py", *known}
