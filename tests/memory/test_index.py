"""Approximate indexes: recall, training on real vectors, drift, tombstones, copies."""

import copy
import pickle

import pytest
import torch

from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory

D = 16
TYPES = {
    "ivf": {"num_clusters": 20, "nprobe": 4},
    "ivfpq": {"num_clusters": 20, "nprobe": 4, "pq_m": 4, "pq_bits": 4},
    "hnsw": {"m": 8},
}


def clustered(n, seed=0, scale=1.0, noise=0.2):
    """Around 20 centres that are the same for each seed."""
    centres = torch.randn(20, D, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    return scale * (centres[torch.randint(20, (n,), generator=rng)] + noise * torch.randn(n, D, generator=rng))


def built(index, size=1000, **options):
    return AssociativeMemory(size, D, index_type=index, **TYPES[index], **options)


def recall(memory, queries, k=5):
    exact = AssociativeMemory(memory.memory_size, D, metric=memory.metric)
    exact.add(memory.get_all_embeddings())
    wanted = memory.ids()[exact.search(queries, k)[0]]
    return float((memory.search(queries, k)[0][:, :, None] == wanted[:, None]).any(-1).float().mean())


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("index", TYPES)
def test_recall(index, metric):
    memory = built(index, metric=metric)
    memory.add(clustered(1000))
    queries = clustered(100, seed=1)
    assert recall(memory, queries) > (0.8 if index == "ivfpq" else 0.95)
    assert memory._index.trained_on == 1000


@pytest.mark.parametrize("index", TYPES)
def test_recall_stays_when_everything_is_replaced(index):
    memory = built(index, size=400)
    memory.add(clustered(400))
    for step in range(12):
        memory.add(clustered(70, seed=step + 2, scale=1 + step))  # ever farther out: the old clusters fit no more
        memory.remove(memory.ids()[::9])
        memory.search(clustered(1))
    assert recall(memory, clustered(100, seed=1, scale=12)) > (0.8 if index == "ivfpq" else 0.95)


def test_search_is_exact_until_there_is_enough_to_train_on():
    memory = built("ivf", num_search_results=10)
    memory.add(clustered(400))
    assert recall(memory, torch.randn(50, D, generator=torch.Generator().manual_seed(5)), k=10) == 1
    assert memory._index.trained_on == 0
    memory.add(clustered(200, seed=3))
    memory.search(clustered(1))
    assert memory._index.trained_on == 600


def test_fewer_vectors_than_clusters_are_no_error():
    memory = AssociativeMemory(5000, D, index_type="ivf")
    memory.add(clustered(30))
    assert recall(memory, clustered(10, seed=1)) == 1


def test_trained_again_after_as_many_were_written():
    memory = built("ivf", size=600)
    memory.add(clustered(600))
    query = clustered(1)
    memory.search(query)
    memory.add(clustered(599, seed=3))
    memory.search(query)
    assert memory._index.written == 599
    memory.add(clustered(1, seed=4))
    memory.search(query)
    assert memory._index.written == 0


@pytest.mark.parametrize("index", TYPES)
def test_what_is_removed_or_changed_is_never_found(index):
    memory = built(index)
    vectors = clustered(1000)
    ids = memory.add(vectors)
    memory.search(vectors[:1])
    memory.remove(ids[:600:2])
    changed = clustered(50, seed=4)
    memory.update(ids[1:100:2], changed)
    found, distances = memory.search(vectors[:100], 20)
    assert not set(found.flatten().tolist()) & set(range(0, 600, 2))
    exact = (vectors[:100, None] - memory[found]).square().sum(-1)
    torch.testing.assert_close(distances, exact, rtol=1e-4, atol=1e-4)
    found, distances = memory.search(changed, 1)
    right = found.flatten() == ids[1:100:2]
    assert right.float().mean() > (0.7 if index == "ivfpq" else 0.99)
    assert (distances[right] == 0).all()


@pytest.mark.parametrize("index", TYPES)
def test_a_copy_takes_the_trained_index_along_and_a_pickle_builds_its_own(index):
    memory = built(index)
    memory.add(clustered(1000))
    queries = clustered(20, seed=1)
    expected = memory.search(queries)
    copied = copy.deepcopy(memory)
    assert copied._index.trained_on == 1000
    assert copied._index._index is not None
    copied.add(clustered(500, seed=7))
    copied.search(queries)
    assert all(map(torch.equal, memory.search(queries), expected))
    again = pickle.loads(pickle.dumps(memory))
    assert again._index._index is None
    assert torch.equal(again.search(queries)[0][:, 0], expected[0][:, 0])


@pytest.mark.parametrize("index", TYPES)
def test_loading_another_memory_builds_its_index(index):
    memory, other = built(index), built(index)
    memory.add(clustered(1000))
    other.add(clustered(1000, seed=3, scale=-5))
    other.search(clustered(1))
    other.load_state_dict(memory.state_dict())
    assert recall(other, clustered(100, seed=1)) > (0.8 if index == "ivfpq" else 0.95)


@pytest.mark.parametrize("index", ["flat", *TYPES])
def test_every_query_gets_what_it_may_see(index):
    """Its nearest 300 entries are its own future: the index has to be asked for more, or the exact search."""
    memory = built(index) if index != "flat" else AssociativeMemory(1000, D)
    near, far = clustered(1).expand(300, D) + 0, clustered(500, seed=2)
    payload = Entries(documents=torch.tensor([1] * 300 + [2] * 500), positions=torch.arange(800))
    memory.add(torch.cat((near, far)), payload)
    origin = Entries(documents=torch.tensor([1, 3]), positions=torch.tensor([4, 4]))
    found, distances = memory.search(near[:2], 8, origin=origin)
    assert set(found[0, :4].tolist()) == {0, 1, 2, 3}
    assert (found[0, 4:] >= 300).all()
    assert (distances[0, :4] == 0).all()
    wanted = (far - near[0]).square().sum(1).sort().values[:4]
    torch.testing.assert_close(distances[0, 4:], wanted, rtol=1e-5, atol=1e-5)
    assert (found[1] < 300).all()  # the control: another document's reader finds them
    assert (distances[1] == 0).all()
