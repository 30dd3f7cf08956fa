"""A run whose newest files are damaged goes on from those before them."""

import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_app.closing import _opened
from lightning_app.training.checkpoint_io import read_checkpoint

CHECKPOINTS = Path("runs/tiny/version_0/checkpoints")


@pytest.fixture
def damaged(tiny_run: Path, folder: Path) -> None:
    """A finished run with a flipped bit in last.ckpt and in best.ckpt."""
    shutil.copytree(tiny_run.parents[2], ".", dirs_exist_ok=True)
    for name in ("last", "best"):
        flip(CHECKPOINTS / f"{name}.ckpt")


def flip(path: Path) -> None:
    """Change one bit of the largest tensor; elsewhere in the file there is padding, in which it would harm nothing."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)  # lengths, in the header of 30 bytes
    content[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("damaged")
def test_it_is_said_and_both_are_whole_afterwards(main: Callable[..., None], caplog: pytest.LogCaptureFixture):
    main("fit", "--config", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_steps", 9)
    assert re.search(r"last\.ckpt is damaged.*last-previous\.ckpt of step 3 is taken instead", caplog.text)
    assert re.search(r"best\.ckpt is replaced, best-previous\.ckpt is kept: .*best\.ckpt is damaged", caplog.text)
    steps = {path.name: read_checkpoint(path)["global_step"] for path in CHECKPOINTS.glob("*.ckpt")}
    assert steps["last.ckpt"] == steps["best.ckpt"] == 9
    assert steps["best-previous.ckpt"] in (3, 6)


@pytest.mark.usefixtures("damaged")
def test_a_path_is_refused(fails: Callable[..., str]):
    error = fails("generate", "--ckpt_path", CHECKPOINTS / "last.ckpt", "--prompt", "the")
    assert re.search(r"last\.ckpt is damaged: Bad CRC-32.*others in .*last-previous\.ckpt", error)


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("gone", [False, True])
def test_the_end_of_a_fit_takes_the_previous_best(gone: bool, caplog: pytest.LogCaptureFixture):
    best = CHECKPOINTS / "best.ckpt"
    if gone:
        best.unlink()
    module, _ = _opened(best)
    assert "best-previous.ckpt of step" in caplog.text
    before = read_checkpoint(CHECKPOINTS / "best-previous.ckpt")["state_dict"]
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
