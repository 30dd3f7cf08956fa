import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.training import checkpoint_io
from lightning_app.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint

OLD = {"step": 1, "weights": torch.arange(50_000)}


class NotPlain:
    """Something that weights_only refuses."""


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "runs" / "step_1.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(saved):
    assert names(saved.parent) == ["step_1.ckpt"]
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        checkpoint = read(saved)
        assert checkpoint["step"] == 1
        assert torch.equal(checkpoint["weights"], OLD["weights"])


def test_the_trainer_accepts_it():
    trainer = L.Trainer(plugins=[AtomicCheckpointIO()], accelerator="cpu", logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.999])
def test_a_truncated_file_is_named_with_the_others(saved, keep):
    broken = saved.with_name("step_2.ckpt")
    content = saved.read_bytes()
    broken.write_bytes(content[: int(keep * len(content)) if keep < 1 else 1])
    with pytest.raises(InputError, match=r"step_2.ckpt is (empty|truncated).*newest first: step_1.ckpt"):
        read_checkpoint(broken)


def test_a_damaged_archive(saved):
    content = bytearray(saved.read_bytes())
    start = content.rindex(b"data.pkl")  # in the directory at the archive's end
    content[start : start + 8] = b"data.xxx"
    saved.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(saved)


def test_a_missing_file_is_named_with_the_others(saved):
    with pytest.raises(InputError, match=r"no checkpoint file .*step_3.ckpt; others in .*step_1.ckpt"):
        read_checkpoint(saved.with_name("step_3.ckpt"))
    with pytest.raises(InputError, match=r"no other checkpoint in .*nowhere"):
        AtomicCheckpointIO().load_checkpoint(saved.parent / "nowhere" / "last.ckpt")


def test_only_plain_types_unless_asked(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"object": NotPlain()}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"a.ckpt holds more than tensors and plain types.*weights_only=False"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert isinstance(loaded["object"], NotPlain)


def test_not_a_dictionary(tmp_path):
    torch.save(torch.zeros(2), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="holds a Tensor, not a checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


class FullDisk:
    """A file on a disk with room for 10 kB."""

    def __init__(self, file, code: int) -> None:
        self.file, self.code, self.room = file, code, 10_000

    def write(self, content) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.file.write(content)


def fill_disk(monkeypatch, code: int) -> None:
    save = torch.save
    monkeypatch.setattr(checkpoint_io.torch, "save", lambda content, file: save(content, FullDisk(file, code)))


def test_a_full_disk_keeps_the_old_file(saved, monkeypatch):
    fill_disk(monkeypatch, errno.ENOSPC)
    with pytest.raises(InputError, match=r"is full: step_1\.ckpt was not written, what was there is kept"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.arange(50_000)}, saved)
    assert names(saved.parent) == ["step_1.ckpt"]
    assert read_checkpoint(saved)["step"] == 1


def test_other_failures_keep_their_type(saved, monkeypatch):
    fill_disk(monkeypatch, errno.EIO)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.arange(50_000)}, saved)
    assert names(saved.parent) == ["step_1.ckpt"]
    assert read_checkpoint(saved)["step"] == 1


def test_what_a_killed_process_left_is_removed(saved):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = saved.with_name(f".step_0.ckpt.{platform.node()}-{ended.pid}.tmp")
    running = saved.with_name(f".step_0.ckpt.{platform.node()}-{os.getppid()}.tmp")
    foreign = saved.with_name(".step_0.ckpt.another-machine-1.tmp")
    for path in (left, running, foreign):
        path.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(OLD, saved)
    assert names(saved.parent) == sorted([running.name, foreign.name, "step_1.ckpt"])


def test_refuses_remote_paths_and_storage_options(tmp_path):
    with pytest.raises(InputError, match=r"s3://bucket/a\.ckpt is remote"):
        AtomicCheckpointIO().save_checkpoint(OLD, "s3://bucket/a.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "a.ckpt", storage_options={})


def test_removes(saved):
    AtomicCheckpointIO().remove_checkpoint(saved)
    assert names(saved.parent) == []
