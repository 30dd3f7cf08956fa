import io
import random
from typing import Any

import numpy as np
import pytest
import torch

from lightning_app.training.callbacks.exact_resume import RandomState, random_states, set_random_states


def draw() -> tuple[float, ...]:
    return torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def batch(callback: RandomState) -> tuple[float, ...]:
    callback.on_train_batch_start(None, None, None, 0)
    numbers = draw()
    callback.on_train_batch_end(None, None, None, None, 0)
    return numbers


@pytest.fixture(autouse=True)
def keep_streams():
    states = random_states()
    yield
    set_random_states(states)


def test_states_come_back_through_a_checkpoint():
    draw()  # one of two normal numbers: numpy and python keep the other
    states = through_a_file(random_states())
    numbers = draw(), draw()
    set_random_states(states)
    assert (draw(), draw()) == numbers


def test_what_is_drawn_between_batches_does_not_matter():
    states = random_states()
    quiet = RandomState()
    numbers = [batch(quiet) for _ in range(3)]
    set_random_states(states)
    disturbed = RandomState()
    found = []
    for _ in range(3):
        found.append(batch(disturbed))
        draw()
        torch.manual_seed(0)
    assert found == numbers


def test_a_resume_goes_on_at_the_first_batch():
    first = RandomState()
    batch(first)
    saved = through_a_file(first.state_dict())
    numbers = [batch(first) for _ in range(2)]
    second = RandomState()
    second.setup(None, None, "fit")
    second.load_state_dict(saved)
    draw()  # a validation, say
    assert [batch(second) for _ in range(2)] == numbers


def test_a_state_asked_for_inside_a_batch_is_that_before_it():
    callback = RandomState()
    callback.on_train_batch_start(None, None, None, 0)
    numbers = draw()
    set_random_states(through_a_file(callback.state_dict())["ranks"][0])
    assert draw() == numbers


def test_another_fit_starts_with_the_stream_as_it_is():
    callback = RandomState()
    batch(callback)
    callback.setup(None, None, "fit")
    states = random_states()
    numbers = draw()
    set_random_states(states)
    assert batch(callback) == numbers


def test_a_rank_that_the_checkpoint_does_not_know_keeps_its_stream(monkeypatch):
    saved = RandomState().state_dict()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    callback = RandomState()
    with pytest.warns(UserWarning, match="rank 1 resumes without its random state: the checkpoint holds 1 rank"):
        callback.load_state_dict(saved)
    states = random_states()
    numbers = draw()
    set_random_states(states)
    assert batch(callback) == numbers


def gather_and_restore(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    first = RandomState()
    batch(first)
    saved = first.state_dict()
    numbers = batch(first)
    second = RandomState()
    second.load_state_dict(saved)
    assert batch(second) == numbers
    torch.save(saved, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_every_rank_has_its_own_stream(tmp_path):
    torch.multiprocessing.spawn(gather_and_restore, args=(str(tmp_path),), nprocs=2)
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt")["ranks"] for rank in range(2))
    assert len(ours) == len(theirs) == 2
    assert not torch.equal(ours[0]["torch"], ours[1]["torch"])
    for mine, yours in zip(ours, theirs, strict=True):
        assert torch.equal(mine["torch"], yours["torch"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_streams_come_back():
    torch.rand(1, device="cuda")
    states = through_a_file(random_states())
    numbers = torch.rand(3, device="cuda")
    set_random_states(states)
    assert torch.equal(torch.rand(3, device="cuda"), numbers)
