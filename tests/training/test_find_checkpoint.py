"""What "last" and "best" mean where files are damaged."""

import os
import time
from pathlib import Path

import pytest
import torch

from lightning_app.errors import DamagedError, InputError
from lightning_app.training.find_checkpoint import find_checkpoint


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def write(runs: Path, name: str, step: int, *, run: str = "a/version_0", at: float = 0) -> Path:
    """A checkpoint; `at` is the time of its file in seconds, which says nothing of its step."""
    path = runs / run / "checkpoints" / f"{name}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step, "weights": torch.arange(1000)}, path)
    os.utime(path, (at, at))
    return path


def flip(path: Path) -> None:
    """One bit of a tensor, without a trace in the file's time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[content.index(torch.arange(1000).numpy().tobytes()) + 500] ^= 4
    path.write_bytes(content)
    os.utime(path, (stat.st_atime, stat.st_mtime))


def test_the_newest_of_its_name(runs: Path, caplog: pytest.LogCaptureFixture):
    write(runs, "last", 9, run="b/version_3", at=1)
    newest = write(runs, "last", 2, run="a/version_0", at=2)
    write(runs, "last-previous", 1, run="a/version_0", at=1)
    write(runs, "best", 2, run="a/version_0", at=1)
    assert find_checkpoint("last", runs) == str(newest)
    assert find_checkpoint(str(newest), runs) == str(newest)
    assert caplog.text == ""
    with pytest.raises(InputError, match=r"there is no checkpoint gone.ckpt; those in .*last.ckpt"):
        find_checkpoint("gone.ckpt", runs)
    with pytest.raises(InputError, match=r"there is no best.ckpt in .*nowhere"):
        find_checkpoint("best", runs / "nowhere")


def test_it_says_which_it_took_of_which_run_and_how_old(runs: Path, capsys: pytest.CaptureFixture[str]):
    path = write(runs, "best", 1200, run="mine/version_3", at=time.time() - 7300)
    find_checkpoint("best", runs)
    find_checkpoint(str(path), runs)
    assert capsys.readouterr().err == f"checkpoint: {path} (mine/version_3, step 1,200, 2 hours old)\n" * 2
    (folder := runs.parent / "model").mkdir()
    find_checkpoint(str(folder), runs)
    assert capsys.readouterr().err == f"checkpoint: {folder} (0 seconds old)\n"


def test_a_damaged_last_is_replaced_by_the_highest_step(runs: Path, caplog: pytest.LogCaptureFixture):
    flip(write(runs, "last", 30, at=9))
    write(runs, "last-previous", 10, at=9)
    best = write(runs, "best", 20, at=1)
    write(runs, "best-previous", 5, at=8)
    assert find_checkpoint("last", runs) == str(best)
    (line,) = caplog.messages
    assert "last.ckpt is damaged: Bad CRC-32" in line
    assert line.endswith(f"{best} of step 20 is taken instead")
    assert "\n" not in line


def test_a_damaged_best_is_replaced_by_the_one_before(runs: Path):
    flip(write(runs, "best", 30))
    write(runs, "last", 40)
    before = write(runs, "best-previous", 10)
    assert find_checkpoint("best", runs) == str(before)


def test_then_by_that_of_the_version_before(runs: Path):
    """Of the same name, whatever the times of the files."""
    for name, step in (("last", 30), ("last-previous", 20)):
        flip(write(runs, name, step, run="a/version_12", at=9))
    write(runs, "last", 99, run="b/version_0", at=8)
    write(runs, "last", 50, run="a/version_1", at=7)
    wanted = write(runs, "last", 5, run="a/version_2", at=1)
    write(runs, "last-previous", 7, run="a/version_2", at=1)
    assert find_checkpoint("last", runs) == str(wanted)


def test_a_kill_between_the_renames_left_the_previous_one(runs: Path, caplog: pytest.LogCaptureFixture):
    write(runs, "last", 7, run="a/version_0", at=1)
    wanted = write(runs, "last-previous", 3, run="a/version_1", at=2)
    assert find_checkpoint("last", runs) == str(wanted)
    assert "there is no" in caplog.text


def test_nothing_whole(runs: Path):
    flip(write(runs, "best", 30))
    with pytest.raises(DamagedError, match=r"best.ckpt is damaged"):
        find_checkpoint("best", runs)


def test_the_folder_of_a_run_is_answered_with_its_checkpoint(runs: Path):
    best = write(runs, "best", 2)
    with pytest.raises(InputError, match=f"the folder of a run: give {best}"):
        find_checkpoint(str(best.parents[1]), runs)
