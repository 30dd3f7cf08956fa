from itertools import chain

import pytest
import torch

from lightning_app.data.loader import ResumableLoader
from lightning_app.errors import InputError


class Windows:
    """N windows whose content is their index; remembers what was fetched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fetched: list[list[int]] = []

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        self.fetched.append(indices)
        return torch.tensor(indices)


class EpochWindows(Windows):
    """Windows that are told the epoch."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.told: list[tuple[int, int]] = []

    def set_epoch(self, epoch: int, seed: int) -> None:
        self.told.append((epoch, seed))


class Threads(Windows):
    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return torch.tensor([torch.get_num_threads()])


def batches(loader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def epochs(loader, count: int) -> list[list[list[int]]]:
    return [batches(loader) for _ in range(count)]


def flat(lists) -> list:
    return list(chain.from_iterable(lists))


def test_sequential():
    assert batches(ResumableLoader(Windows(5), batch_size=2)) == [[0, 1], [2, 3], [4]]
    assert batches(ResumableLoader(Windows(5), batch_size=2, drop_last=True)) == [[0, 1], [2, 3]]


def test_shuffled_is_a_permutation_and_a_function_of_seed_and_epoch():
    first, second = epochs(ResumableLoader(Windows(50), batch_size=8, order="shuffled", seed=1), 2)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(50))
    assert first != second
    assert first == batches(ResumableLoader(Windows(50), batch_size=8, order="shuffled", seed=1))
    assert first != batches(ResumableLoader(Windows(50), batch_size=8, order="shuffled", seed=2))
    later = ResumableLoader(Windows(50), batch_size=8, order="shuffled", seed=1)
    later.set_epoch(1)
    assert batches(later) == second


def test_streams_continue_row_by_row():
    loader = ResumableLoader(Windows(10), batch_size=4, order="streams")  # L = ceil(10 / 4) = 3
    assert batches(loader) == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    loader = ResumableLoader(Windows(10), batch_size=4, order="streams", drop_last=True)  # L = floor(10 / 4) = 2
    assert batches(loader) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize("order", ["sequential", "shuffled", "streams"])
@pytest.mark.parametrize("size", [1, 6, 9, 10, 25])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_in_evaluation_share_every_window_once(order, size, world_size):
    share = {"batch_size": 3, "order": order, "world_size": world_size}
    loaders = [ResumableLoader(Windows(size), rank=rank, **share) for rank in range(world_size)]
    seen = [batches(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(rank) for rank in seen]
    assert sorted(flat(flat(seen))) == list(range(size))


@pytest.mark.parametrize("order", ["sequential", "streams"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_windows_of_each_batch_are_known_by_number(order, world_size):
    for rank in range(world_size):
        loader = ResumableLoader(Windows(25), batch_size=2, order=order, rank=rank, world_size=world_size)
        assert [loader.windows(i) for i in range(len(loader))] == batches(loader)


@pytest.mark.parametrize("order", ["sequential", "shuffled", "streams"])
@pytest.mark.parametrize("size", [12, 25, 91])
@pytest.mark.parametrize("drop_last", [False, True])
def test_even_ranks_have_as_many_batches(order, size, drop_last):
    share = {"batch_size": 3, "order": order, "world_size": 4, "even": True, "drop_last": drop_last}
    seen = [batches(ResumableLoader(Windows(size), rank=rank, **share)) for rank in range(4)]
    assert len({len(rank) for rank in seen}) == 1
    windows = flat(flat(seen))
    assert len(windows) == len(set(windows)) > size - 12


@pytest.mark.parametrize(("order", "size"), [("sequential", 26), ("shuffled", 26), ("streams", 24)])
def test_ranks_together_see_the_batches_of_one_process_in_its_order(order, size):
    alone = epochs(ResumableLoader(Windows(size), batch_size=6, order=order), 2)
    share = {"batch_size": 3, "order": order, "world_size": 2, "even": True}
    ranks = [epochs(ResumableLoader(Windows(size), rank=rank, **share), 2) for rank in range(2)]
    assert [[a + b for a, b in zip(*parts, strict=True)] for parts in zip(*ranks, strict=True)] == alone


def reference(order: str, workers: int) -> tuple[ResumableLoader, list[list[list[int]]]]:
    options = {"batch_size": 3, "order": order, "seed": 4, "num_workers": workers}
    return ResumableLoader(Windows(11), **options), epochs(ResumableLoader(Windows(11), **options), 3)


@pytest.mark.parametrize("order", ["sequential", "shuffled", "streams"])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("epoch", [0, 1])
def test_continues_after_any_batch_without_fetching_the_skipped(order, after, epoch):
    loader, expected = reference(order, workers=0)
    interrupted, _ = reference(order, workers=0)
    for _ in range(epoch):
        batches(interrupted)
    iterator = iter(interrupted)
    for _ in range(after):
        next(iterator)
    loader.load_state_dict(interrupted.state_dict())
    rest = flat(expected[epoch:])[after:]
    assert flat(epochs(loader, 3 - epoch))[: len(rest)] == rest
    assert loader.dataset.fetched[: len(rest)] == rest


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_workers_that_fetch_ahead_do_not_count(after):
    interrupted, expected = reference("shuffled", workers=2)
    iterator = iter(interrupted)
    for _ in range(after):
        next(iterator)
    assert interrupted.state_dict() == {"epoch": 0, "batches": after, "of": 4, "seed": 4}
    loader, _ = reference("shuffled", workers=2)
    loader.load_state_dict(interrupted.state_dict())
    assert batches(loader) == (expected[0][after:] or expected[1])


def test_workers_run_one_thread():
    loader = ResumableLoader(Threads(4), batch_size=2, num_workers=1)
    assert [int(threads) for threads in loader] == [1, 1]


def test_set_epoch_keeps_a_continuation_of_that_epoch_only():
    loader, expected = reference("shuffled", workers=0)
    loader.load_state_dict({"epoch": 1, "batches": 2})
    loader.set_epoch(1)
    assert batches(loader) == expected[1][2:]
    loader.load_state_dict({"epoch": 1, "batches": 2})
    loader.set_epoch(2)
    assert batches(loader) == expected[2]


def test_an_unused_iterator_changes_nothing():
    loader, expected = reference("shuffled", workers=0)
    iter(loader)
    unused = iter(loader)
    assert epochs(loader, 2) == expected[:2]
    del unused


def test_iterating_draws_nothing_from_the_global_stream():
    before = torch.get_rng_state()
    batches(ResumableLoader(Windows(20), batch_size=3, order="shuffled"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dataset_is_told_the_epoch_before_its_first_batch():
    dataset = EpochWindows(4)
    loader = ResumableLoader(dataset, batch_size=2, seed=9)
    epochs(loader, 2)
    loader.set_epoch(7)
    iterator = iter(loader)
    assert dataset.told == [(0, 9), (1, 9)]
    next(iterator)
    assert dataset.told[-1] == (7, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch_factor": 2}, "prefetch_factor is 2 but num_workers is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"order": "random"}, "order is 'random'; choose one of shuffled, sequential, streams"),
        ({"rank": 2, "world_size": 2}, "rank is 2; with world_size 2"),
        ({"batch_size": 11, "drop_last": True}, "10 windows give no batch of batch_size 11"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        ResumableLoader(Windows(10), **{"batch_size": 2, **options})


def test_refuses_the_state_of_other_data():
    loader = ResumableLoader(Windows(10), batch_size=5)
    with pytest.raises(InputError, match=r"after 3 batches of an epoch .* now it has 2"):
        loader.load_state_dict({"epoch": 0, "batches": 3})
    with pytest.raises(InputError, match=r"an epoch that had 5, .* now it has 2"):
        loader.load_state_dict({"epoch": 0, "batches": 1, "of": 5, "seed": 0})
    with pytest.raises(InputError, match=r"seed 7; .* the seed is 0"):
        loader.load_state_dict({"epoch": 0, "batches": 1, "of": 2, "seed": 7})
