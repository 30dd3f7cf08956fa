"""The associative memory: ids, eviction, payload, masks, forgetting, state and bad input."""

import copy
import io

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.models.memory import AssociativeMemory, Origin, Payload

D = 6


def rows(n, seed=0, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def filled(n=10, **options):
    memory = AssociativeMemory(options.pop("memory_size", 20), D, **options)
    vectors = rows(n)
    memory.add(
        vectors, Payload(tokens=torch.arange(n) + 100, documents=torch.arange(n) // 5, positions=torch.arange(n) % 5)
    )
    return memory, vectors


def distances_in_fp64(queries, vectors, metric):
    q, x = queries.double()[..., None, :], vectors.double()
    if metric == "l2":
        return (q - x).square().sum(-1)
    dots = (q * x).sum(-1)
    return -dots if metric == "inner_product" else 1 - dots / (q.norm(dim=-1) * x.norm(dim=-1))


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
def test_finds_the_nearest(metric):
    memory, vectors = filled(metric=metric)
    queries = rows(6, seed=1).view(2, 3, D)
    ids, distances = memory.search(queries, 4)
    expected = distances_in_fp64(queries, vectors, metric).sort(dim=-1)
    assert ids.tolist() == expected.indices[..., :4].tolist()
    torch.testing.assert_close(distances.double(), expected.values[..., :4], rtol=1e-5, atol=1e-5)


def test_missing_results_are_minus_one_and_infinitely_far():
    memory, _ = filled(2)
    ids, distances = memory.search(rows(3), 4)
    assert ids.shape == distances.shape == (3, 4)
    assert (ids[:, 2:] == -1).all()
    assert (distances[:, 2:] == torch.inf).all()
    assert (ids[:, :2] >= 0).all()


def test_ids_stay_when_others_go():
    memory, vectors = filled(10)
    memory.remove(torch.tensor([0, 7, 3]))
    assert memory.ids().tolist() == [1, 2, 4, 5, 6, 8, 9]
    assert torch.equal(memory.get_all_embeddings(), vectors[memory.ids()])
    assert torch.equal(memory[torch.tensor([[8, -1]])], torch.stack((vectors[8], torch.zeros(D)))[None])
    assert memory.add(rows(2, seed=5)).tolist() == [10, 11]
    memory.reset()
    assert memory.size() == 0
    assert memory.add(rows(1)).tolist() == [12]


def test_a_query_does_not_see_its_own_future():
    memory, vectors = filled(10)
    origin = Origin(torch.tensor([1, 1, -1]), torch.tensor([2, 3, 0]))
    queries = vectors[[7, 7, 7]]
    ids, distances = memory.search(queries, 10, origin=origin)
    assert set(ids[0].tolist()) == {-1, 0, 1, 2, 3, 4, 5, 6}
    assert ids[1, 0] == 7
    assert distances[1, 0] == 0
    assert ids[2, 0] == 7
    ids, _ = memory.search(queries, 10, origin=origin, own_document_only=True)
    assert [set(row.tolist()) for row in ids] == [{-1, 5, 6}, {-1, 5, 6, 7}, {-1}]


def test_state_round_trip():
    memory, _ = filled(10)
    memory.remove(torch.tensor([4]))
    other = AssociativeMemory(20, D)
    assert other.size() == 0
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    queries = rows(5, seed=3)
    for copied in (other, copy.deepcopy(memory)):
        assert all(map(torch.equal, memory.search(queries), copied.search(queries)))
        assert copied.ids().tolist() == memory.ids().tolist()


@pytest.mark.parametrize("other", [{"memory_dim": 5}, {"memory_size": 21}])
def test_another_size_is_refused(other):
    memory = AssociativeMemory(**{"memory_size": 20, "memory_dim": D, **other})
    with pytest.raises(InputError, match=r"\(20, 6\) in the checkpoint"):
        memory.load_state_dict(filled()[0].state_dict())
