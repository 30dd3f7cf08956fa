import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from lightning_app.errors import DamagedError, InputError
from lightning_app.io import temporary_name
from lightning_app.memory.store import AssociativeMemory
from lightning_app.reports.run_folder import with_previous
from lightning_app.training import checkpoint_io
from lightning_app.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint, read_numbers

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


@pytest.mark.parametrize("mmap", [False, True])
def test_one_flipped_bit_of_a_tensor_is_noticed(saved, mmap):
    """`torch.load` does not; nor is a checkpoint from before this check any different."""
    content = bytearray(saved.read_bytes())
    content[content.index(OLD["weights"].numpy().tobytes()) + 1000] ^= 1
    saved.write_bytes(content)
    assert not torch.equal(torch.load(saved, weights_only=True, mmap=mmap)["weights"], OLD["weights"])
    with pytest.raises(DamagedError, match=r"step_1.ckpt is damaged: Bad CRC-32"):
        read_checkpoint(saved, mmap=mmap)
    with pytest.raises(DamagedError):
        AtomicCheckpointIO().load_checkpoint(saved)
    assert read_numbers(saved)["step"] == 1  # in which no tensor is looked at


def test_the_previous_file_is_kept(saved):
    before = saved.with_name("step_1-previous.ckpt")
    io = AtomicCheckpointIO()
    for step in (2, 3):
        io.save_checkpoint({"step": step}, saved)
        assert (read_checkpoint(saved)["step"], read_checkpoint(before)["step"]) == (step, step - 1)
    assert names(saved.parent) == ["step_1-previous.ckpt", "step_1.ckpt"]
    io.remove_checkpoint(saved)
    assert names(saved.parent) == []


def test_a_damaged_file_does_not_replace_the_generation_before_it(saved, caplog):
    AtomicCheckpointIO().save_checkpoint({"step": 2}, saved)
    saved.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint({"step": 3}, saved)
    assert "step_1.ckpt is replaced, step_1-previous.ckpt is kept" in caplog.text
    assert read_checkpoint(saved)["step"] == 3
    assert read_checkpoint(saved.with_name("step_1-previous.ckpt"))["step"] == 1


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_kill_at_either_rename_leaves_a_whole_file(saved, monkeypatch, killed_at):
    replace, renamed = os.replace, []

    def kill(*paths):
        renamed.append(paths)
        if len(renamed) == killed_at:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, saved)
    assert with_previous(saved)[0] == saved
    assert {read_checkpoint(path)["step"] for path in with_previous(saved)} == {1}


def test_the_next_save_removes_the_link_that_a_killed_one_left(saved, monkeypatch):
    def kill(*_paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, saved)
    monkeypatch.undo()
    assert [path.name for path in saved.parent.glob(".*.tmp")]
    AtomicCheckpointIO().save_checkpoint({"step": 2}, saved)
    assert not [path.name for path in saved.parent.glob(".*.tmp")]


def test_without_hard_links_a_kill_leaves_the_generation_before(saved, monkeypatch):
    def refuse(*_paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    AtomicCheckpointIO().save_checkpoint({"step": 2}, saved)
    assert [read_checkpoint(path)["step"] for path in with_previous(saved)] == [2, 1]


def test_the_same_step_again_keeps_the_generation_before(saved):
    for writer in (AtomicCheckpointIO(), AtomicCheckpointIO()):  # in one process, and after a resume
        for step in (2, 2):
            writer.save_checkpoint({"step": 2, "global_step": step}, saved)
        assert [read_checkpoint(path)["step"] for path in with_previous(saved)] == [2, 1]


def test_one_generation_if_asked(saved):
    AtomicCheckpointIO(keep_previous=False).save_checkpoint({"step": 2}, saved)
    assert names(saved.parent) == ["step_1.ckpt"]


def test_a_folder_of_shards_is_answered_with_what_makes_it_one_file(tmp_path):
    (tmp_path / ".metadata").touch()
    with pytest.raises(InputError, match=r"a folder of shards: .* python -m .*consolidate_checkpoint .* --output_file"):
        read_checkpoint(tmp_path)


def test_a_folder_that_holds_no_model_says_so(tmp_path):
    with pytest.raises(InputError, match="a folder without a model: neither a Hugging Face directory"):
        read_checkpoint(tmp_path)


def test_a_missing_file_is_named_with_the_others(saved):
    with pytest.raises(InputError, match=r"no checkpoint file .*step_3.ckpt; others in .*step_1.ckpt"):
        read_checkpoint(saved.with_name("step_3.ckpt"))
    with pytest.raises(InputError, match=r"no other checkpoint in .*nowhere"):
        AtomicCheckpointIO().load_checkpoint(saved.parent / "nowhere" / "last.ckpt")


def test_only_plain_types_unless_asked(tmp_path):
    with pytest.raises(InputError, match=r"NotPlain into the checkpoint at object, and it could not be read back"):
        AtomicCheckpointIO().save_checkpoint({"object": NotPlain()}, tmp_path / "a.ckpt")
    torch.save({"object": NotPlain()}, tmp_path / "a.ckpt")
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
    def of_process(number: int) -> Path:
        name = temporary_name(saved.with_name("step_0.ckpt"))
        return name.with_name(name.name.replace(f"-{os.getpid()}.tmp", f"-{number}.tmp"))

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = of_process(ended.pid)
    running = of_process(os.getppid())
    foreign = saved.with_name(".step_0.ckpt.another-machine-1.tmp")
    for path in (left, running, foreign):
        path.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(OLD, saved)
    assert names(saved.parent) == sorted([running.name, foreign.name, "step_1-previous.ckpt", "step_1.ckpt"])


def test_refuses_remote_paths_and_storage_options(tmp_path):
    with pytest.raises(InputError, match=r"s3://bucket/a\.ckpt is remote"):
        AtomicCheckpointIO().save_checkpoint(OLD, "s3://bucket/a.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "a.ckpt", storage_options={})


def test_removes(saved):
    AtomicCheckpointIO().remove_checkpoint(saved)
    assert names(saved.parent) == []


# Large memories

NAME = "backbone.readers.0.bank.memories.0.vectors"
SMALL = AtomicCheckpointIO(side_file_bytes=1000, keep_previous=False)


def with_vectors(seed: int = 0, step: int = 1) -> dict:
    vectors = torch.randn(100, 8, generator=torch.Generator().manual_seed(seed))  # 3,200 bytes
    return {"step": step, "state_dict": {"weight": torch.ones(1000), NAME: vectors}}


def side(folder: Path) -> list[str]:
    return names(folder / "memory") if (folder / "memory").is_dir() else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_vectors_lie_beside_the_checkpoint(tmp_path, dtype):
    checkpoint = with_vectors()
    checkpoint["state_dict"][NAME] = checkpoint["state_dict"][NAME].to(dtype)
    SMALL.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    assert list(checkpoint["state_dict"]) == ["weight", NAME]  # the caller's is as it was
    plain = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert list(plain["state_dict"]) == ["weight"]
    (file,) = side(tmp_path)
    assert plain["side_files"][NAME] == {
        "file": f"memory/{file}",
        "sha256": file.removesuffix(".npy"),
        "shape": [100, 8],
        "dtype": str(dtype).removeprefix("torch."),
    }
    assert np.array_equal(np.load(tmp_path / "memory" / file), checkpoint["state_dict"][NAME].numpy())
    for read in (read_checkpoint, SMALL.load_checkpoint, partial(read_checkpoint, mmap=True)):
        whole = read(tmp_path / "a.ckpt")
        assert whole.keys() == checkpoint.keys()
        assert torch.equal(whole["state_dict"][NAME], checkpoint["state_dict"][NAME])


def test_what_is_written_to_mapped_vectors_does_not_reach_the_file(tmp_path):
    SMALL.save_checkpoint(with_vectors(), tmp_path / "a.ckpt")
    read_checkpoint(tmp_path / "a.ckpt")["state_dict"][NAME].zero_()
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["state_dict"][NAME], with_vectors()["state_dict"][NAME])


def test_small_vectors_and_other_tensors_stay_in_the_checkpoint(tmp_path):
    AtomicCheckpointIO().save_checkpoint(with_vectors(), tmp_path / "a.ckpt")
    assert names(tmp_path) == ["a.ckpt"]


def test_unchanged_vectors_are_written_once_and_shared(tmp_path):
    SMALL.save_checkpoint(with_vectors(), tmp_path / "best.ckpt")
    (file,) = side(tmp_path)
    before = (tmp_path / "memory" / file).stat().st_mtime_ns
    SMALL.save_checkpoint(with_vectors(step=2), tmp_path / "best.ckpt")
    SMALL.save_checkpoint(with_vectors(step=3), tmp_path / "last.ckpt")
    assert side(tmp_path) == [file]
    assert (tmp_path / "memory" / file).stat().st_mtime_ns == before


def test_files_that_no_checkpoint_names_are_removed(tmp_path):
    for name, seed in [("best", 0), ("last", 0), ("last", 1)]:
        SMALL.save_checkpoint(with_vectors(seed), tmp_path / f"{name}.ckpt")
    assert len(side(tmp_path)) == 2  # one of each
    SMALL.save_checkpoint(with_vectors(2), tmp_path / "last.ckpt")
    assert len(side(tmp_path)) == 2
    assert torch.equal(read_checkpoint(tmp_path / "best.ckpt")["state_dict"][NAME], with_vectors(0)["state_dict"][NAME])
    SMALL.remove_checkpoint(tmp_path / "best.ckpt")
    assert len(side(tmp_path)) == 1
    SMALL.save_checkpoint(OLD, tmp_path / "last.ckpt")
    assert names(tmp_path) == ["last.ckpt"]


def test_nothing_is_removed_while_a_checkpoint_cannot_be_read(tmp_path, caplog):
    SMALL.save_checkpoint(with_vectors(0), tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"half of a checkpoint")
    SMALL.save_checkpoint(with_vectors(1), tmp_path / "a.ckpt")
    assert len(side(tmp_path)) == 2
    assert "are kept, needed or not" in caplog.text


def test_the_side_files_of_the_previous_file_are_kept_too(tmp_path):
    io = AtomicCheckpointIO(side_file_bytes=1000)
    for seed in range(3):
        io.save_checkpoint(with_vectors(seed), tmp_path / "a.ckpt")
    assert len(side(tmp_path)) == 2
    for name, seed in (("a", 2), ("a-previous", 1)):
        found = read_checkpoint(tmp_path / f"{name}.ckpt")["state_dict"][NAME]
        assert torch.equal(found, with_vectors(seed)["state_dict"][NAME])


def test_a_missing_side_file_is_named_with_its_hash(tmp_path):
    SMALL.save_checkpoint(with_vectors(), tmp_path / "a.ckpt")
    (file,) = side(tmp_path)
    (tmp_path / "memory" / file).unlink()
    with pytest.raises(InputError, match=rf"a.ckpt needs .*memory/{file}, which is missing \(SHA-256 {file[:64]}\)"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_damaged_side_file_is_named_with_both_hashes(tmp_path):
    SMALL.save_checkpoint(with_vectors(), tmp_path / "a.ckpt")
    (file,) = side(tmp_path)
    content = bytearray((tmp_path / "memory" / file).read_bytes())
    content[-1] ^= 1
    (tmp_path / "memory" / file).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{file} is damaged: .*a.ckpt needs SHA-256 {file[:64]}, it has [0-9a-f]{{64}}"
    ):
        read_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "memory" / file).write_bytes(content[:200])
    with pytest.raises(InputError, match=rf"{file}, which checkpoint .*a.ckpt needs, cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")
    SMALL.save_checkpoint(with_vectors(), tmp_path / "a.ckpt")  # a cut one is written again
    read_checkpoint(tmp_path / "a.ckpt")


def test_a_full_disk_keeps_the_old_vectors(tmp_path, monkeypatch):
    SMALL.save_checkpoint(with_vectors(0), tmp_path / "a.ckpt")
    fill_disk(monkeypatch, errno.ENOSPC)
    with pytest.raises(InputError, match="is full"):
        SMALL.save_checkpoint(with_vectors(1) | {"more": torch.zeros(50_000)}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["state_dict"][NAME], with_vectors(0)["state_dict"][NAME])


def test_a_memory_goes_through_a_side_file(tmp_path):
    memory = AssociativeMemory(memory_size=100, memory_dim=8)
    memory.add(torch.randn(70, 8))
    state = {f"bank.{name}": tensor for name, tensor in memory.state_dict().items()}
    SMALL.save_checkpoint({"state_dict": {f"reader.{name}": t for name, t in state.items()}}, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")["state_dict"]
    other = AssociativeMemory(memory_size=100, memory_dim=8)
    other.load_state_dict({name.removeprefix("reader.bank."): tensor for name, tensor in found.items()})
    assert side(tmp_path)
    assert torch.equal(other.get_all_embeddings(), memory.get_all_embeddings())
