"""No run outside runs_dir, and one line where none can be written."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_app.errors import InputError
from lightning_app.training.run_place import check_place


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../out", "'../out', which leads out of runs_dir"),
        ("a/../../out", "which leads out of runs_dir"),
        ("/tmp/out", "which leads out of runs_dir"),
        ("one\ntwo", "without line ends"),
        ("tab\t", "without line ends"),
        ("\ud83d", "without line ends"),
        ("x" * 300, "xxx...', of 300 bytes: a folder's name has at most 255"),
        ("日" * 100, "of 300 bytes"),
    ],
)
def test_a_name_that_is_none(tmp_path: Path, name: str, words: str):
    for writes in (True, False):
        with pytest.raises(InputError) as caught:
            check_place(str(tmp_path), name, writes=writes)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run", "a/b", "läuft gut", "日" * 80, "..a", "."])
def test_names_that_are_some(tmp_path: Path, name: str):
    check_place(str(tmp_path / "deep" / "runs"), name, writes=True)
    assert list(tmp_path.iterdir()) == []


def test_a_fit_into_a_file_or_a_full_disk_is_one_line(
    folder: Path, config: Callable[..., str], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    name = config({})
    (folder / "taken").write_text("a file")
    assert "taken is a file: choose another place" in fails("fit", "--config", name, "--runs_dir", "taken/deeper")
    assert "leads out of runs_dir" in fails("fit", "--config", name, "--name", "../../out")
    make = Path.mkdir

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        if "runs" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", full)
    error = fails("fit", "--config", name)
    assert "no space left on the disk at runs/tiny (No space left on device): make room" in error
    assert not (folder.parent / "out").exists()
    assert (folder / "taken").read_text() == "a file"
