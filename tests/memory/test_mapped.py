"""Vectors in a mapped file: the same results, its own file for each copy, little RAM."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.mapped import MappedVectors
from lightning_app.memory.store import AssociativeMemory

D = 6


def rows(n, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def used(memory):
    """Adds past the capacity, removes, updates."""
    for step in range(4):
        memory.add(rows(12, seed=step))
    memory.remove(memory.ids()[::3])
    memory.update(memory.ids()[:2], rows(2, seed=9))
    return memory


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_equals_a_memory_in_ram(tmp_path, dtype, index):
    options = {"dtype": dtype, "index_type": index, "m": 4}
    mapped = used(AssociativeMemory(30, D, path=str(tmp_path / "vectors"), **options))
    plain = used(AssociativeMemory(30, D, **options))
    assert (tmp_path / "vectors").stat().st_size == 30 * D * mapped.vectors.itemsize
    assert all(map(torch.equal, mapped.search(rows(7, seed=5)), plain.search(rows(7, seed=5))))
    assert mapped.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in mapped.state_dict().items())


def test_the_vectors_lie_in_the_file(tmp_path):
    memory = AssociativeMemory(4, D, path=str(tmp_path / "vectors"))
    memory.add(rows(3))
    content = torch.frombuffer(bytearray((tmp_path / "vectors").read_bytes()), dtype=torch.float32)
    assert torch.equal(content.view(4, D)[:3], rows(3))


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_a_copy_has_a_file_of_its_own(tmp_path, copied_by):
    memory = used(AssociativeMemory(30, D, path=str(tmp_path / "vectors")))
    content, before = (tmp_path / "vectors").read_bytes(), memory.search(rows(7, seed=5))
    other = copied_by(memory)
    assert all(map(torch.equal, other.search(rows(7, seed=5)), before))
    other.reset()
    other.add(rows(5, seed=8))
    assert (tmp_path / "vectors").read_bytes() == content
    assert all(map(torch.equal, memory.search(rows(7, seed=5)), before))
    copied = other.get_all_embeddings()
    memory.reset()
    assert torch.equal(other.get_all_embeddings(), copied)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]


@pytest.mark.parametrize("assign", [False, True])
def test_loading_writes_into_the_file(tmp_path, assign):
    state = used(AssociativeMemory(30, D)).state_dict()
    memory = AssociativeMemory(30, D, path=str(tmp_path / "vectors"))
    memory.load_state_dict(state, assign=assign)
    content = torch.frombuffer(bytearray((tmp_path / "vectors").read_bytes()), dtype=torch.float32)
    assert torch.equal(content.view(30, D), state["vectors"])
    memory.add(rows(1))
    assert (tmp_path / "vectors").read_bytes() != content.numpy().tobytes()


def test_a_cast_leaves_it_where_it_lies(tmp_path):
    memory = used(AssociativeMemory(30, D, path=str(tmp_path / "vectors")))
    before = memory.search(rows(7, seed=5))
    memory.double()
    assert memory.vectors.dtype == torch.float32
    assert all(map(torch.equal, memory.search(rows(7, seed=5)), before))


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "vectors"
    path.write_bytes(b"somebody's")
    with pytest.raises(InputError, match="has 10 bytes, the memory needs 96"):
        AssociativeMemory(4, D, path=str(path))
    assert path.read_bytes() == b"somebody's"
    with pytest.raises(InputError, match=r"folder of path .* does not exist"):
        AssociativeMemory(4, D, path=str(tmp_path / "no" / "vectors"))


def test_two_memories_do_not_share_a_file(tmp_path):
    path = str(tmp_path / "vectors")
    memory = AssociativeMemory(4, D, path=path)
    with pytest.raises(InputError, match="in use by another memory"):
        AssociativeMemory(4, D, path=path)
    del memory
    assert AssociativeMemory(4, D, path=path).size() == 0


def test_copies_in_several_blocks(monkeypatch):
    monkeypatch.setattr("lightning_app.memory.mapped.ROWS_AT_ONCE_BYTES", 100)
    mapped = MappedVectors((11, D), dtype=torch.float32)
    mapped.copy_from(rows(11))
    assert torch.equal(mapped.tensor, rows(11))


LARGE = """
import sys, torch
from lightning_app.memory.store import AssociativeMemory
torch.set_num_threads(1)
def resident():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
queries = torch.randn(64, 768, generator=torch.Generator().manual_seed(1))
def fill(memory, rows):
    for start in range(0, rows, 5000):
        memory.add(torch.randn(5000, 768, generator=torch.Generator().manual_seed(start)))
    return memory.search(queries)
small = AssociativeMemory(5000, 768)
fill(small, 5000)  # what torch and FAISS need for themselves
memory = AssociativeMemory(250_000, 768, path=sys.argv[1])
before = resident()
found = fill(memory, 250_000)
print(resident() - before)
del memory
plain = fill(AssociativeMemory(250_000, 768), 250_000)
print(all(map(torch.equal, found, plain)), resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_750_mb_of_vectors_take_less_than_200_mb_of_ram(tmp_path):
    command = [sys.executable, "-c", LARGE, str(tmp_path / "vectors")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    grown, equal, grown_in_ram = int(printed[0]), printed[1], int(printed[2])
    assert grown < 200e6
    assert equal == "True"
    assert grown_in_ram > 700e6  # the control: the same in RAM is seen by this measure
