"""The exact search against brute force in fp64: any place, scale and number of queries, equal rows and overflow."""

import numpy as np
import pytest
import torch

from lightning_app.memory import exact_search as memory_search
from lightning_app.memory.exact_search import nearest
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory

METRICS = ["l2", "inner_product", "cosine"]
SCALES = [1, 1, 1, 1, 1e-3, 1e-20, 1e-25, 1e15, 1e18, 1e19, 1e20, 1e30]


def around(rng, n, d, middle):
    return torch.randn(n, d, generator=rng) + middle


def clusters(rng, n, d):
    return around(rng, n, d, 300 * (torch.randint(0, 2, (n, 1), generator=rng) * 2 - 1))


def repeated(rng, n, d):
    return around(torch.Generator().manual_seed(7), 40, d, 0)[torch.randint(0, 40, (n,), generator=rng)]


def with_outlier(rng, n, d):
    rows = around(rng, n, d, 5)
    rows[n // 2] = 1e20
    return rows


def with_zeros(rng, n, d):
    return around(rng, n, d, 0) * (torch.arange(n)[:, None] % 3 != 0)


def with_a_long_dimension(rng, n, d):
    return around(rng, n, d, 3) * torch.ones(d).index_fill(0, torch.tensor([0]), 1000)


CLOUDS = {
    "around the origin": lambda rng, n, d: around(rng, n, d, 0),
    "around 300": lambda rng, n, d: around(rng, n, d, 300),
    "around 100,000": lambda rng, n, d: around(rng, n, d, 1e5),
    "close together": lambda rng, n, d: 1 + 1e-4 * around(rng, n, d, 0),
    "on a grid": lambda rng, n, d: around(rng, n, d, 0).round(),
    "two clusters": clusters,
    "repeated": repeated,
    "an outlier": with_outlier,
    "zeros": with_zeros,
    "a long dimension": with_a_long_dimension,
}


def brute_force(queries, rows, metric):
    """(Q, N) in fp64, of what float32 can hold."""
    q, x = queries.double().numpy(), rows.double().numpy()
    if metric == "l2":
        found = np.stack([((x - one) ** 2).sum(1) for one in q])
    else:
        scale = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1) if metric == "cosine" else np.ones(1)
        found = -(q @ x.T) / np.where(scale == 0, 1, scale) + (metric == "cosine")
    return torch.from_numpy(np.where(np.abs(found) <= np.finfo(np.float32).max, found, np.inf))


def noise(queries, rows, metric):
    """Of the brute force itself (Q, 1)."""
    if metric == "l2":
        return torch.zeros(len(queries), 1)
    size = queries.double().norm(dim=1, keepdim=True) * rows.double().norm(dim=1).max()
    return 1e-14 * (size if metric == "inner_product" else torch.ones_like(size))


def check(queries, rows, found, distances, *, metric, k, hidden=None):
    everything = brute_force(queries, rows, metric)
    if hidden is not None:
        everything = everything.masked_fill(hidden, torch.inf)
    wanted = torch.nn.functional.pad(everything, (0, k), value=torch.inf).sort(dim=1).values[:, :k]
    got = everything.gather(1, found.clamp(min=0)).masked_fill(found < 0, torch.inf)
    there = wanted.isfinite()
    assert ((found >= 0) == there).all()
    assert (distances.isfinite() == there).all()
    off = noise(queries, rows, metric) + torch.zeros_like(wanted)
    assert ((got - wanted).abs() <= 1e-13 * wanted.abs() + off)[there].all()
    assert ((distances - wanted).abs() <= 1e-6 * wanted.abs() + off + 1e-44)[there].all()
    assert all(len(set(row)) == len(row) for row in ([i for i in row if i >= 0] for row in found.tolist()))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("cloud", CLOUDS)
def test_equals_brute_force_in_fp64(cloud, metric, monkeypatch):
    """A share of the rows may be hidden, rows may come in blocks, and be searched as on a GPU."""
    for seed in range(6):
        rng, draw = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        d, n, q = (int(draw.choice(of)) for of in ([1, 3, 16, 192], [1, 5, 60, 700], [1, 4, 5, 8, 40]))
        monkeypatch.setattr(memory_search, "BLOCK_BYTES", 4 * d * int(draw.choice([37, 1 << 20])))
        scale, k = float(draw.choice(SCALES)), int(draw.choice([1, 5, 16]))
        both = CLOUDS[cloud](rng, n + q, d) * scale
        rows, queries = both[:n], both[n:]
        if not both.isfinite().all():
            continue
        hidden = torch.rand(q, n, generator=rng) < 0.5 if draw.random() < 0.3 else None
        hides = None if hidden is None else lambda qs, at, h=hidden: h[qs].gather(1, at.expand(len(qs), -1))
        distances, found = nearest(queries, rows, k=k, metric=metric, hidden=hides, use_faiss=bool(draw.random() < 0.7))
        check(queries, rows, found, distances, metric=metric, k=k, hidden=hidden)


@pytest.mark.parametrize("queries", [1, 8, 167, 256, 1000])
def test_finds_all_far_from_the_origin(queries):
    """FAISS's BLAS search alone finds 67 % of these."""
    rng = torch.Generator().manual_seed(0)
    memory, rows, q = AssociativeMemory(2000, 192), around(rng, 2000, 192, 300), around(rng, queries, 192, 300)
    memory.add(rows)
    ids, distances = memory.search(q, 5)
    check(q[:100], rows, ids[:100], distances[:100], metric="l2", k=5)


@pytest.mark.parametrize("use_faiss", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_rows_the_lower_ones_are_found_in_order(metric, use_faiss):
    rows = around(torch.Generator().manual_seed(0), 30, 8, 0)[torch.arange(300) % 30]
    found = nearest(rows[:30], rows, k=4, metric=metric, use_faiss=use_faiss)[1]
    if metric == "inner_product":  # whose nearest is not the vector itself
        assert all((row % 30 == row[0] % 30).all() for row in found)
        assert (found == found[:, :1] + 30 * torch.arange(4)).all()
        assert (found[:, 0] < 30).all()
    else:
        assert (found == torch.arange(30)[:, None] + 30 * torch.arange(4)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("index", ["flat", "ivf", "ivfpq", "hnsw"])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_beyond_float32_is_no_result(index, dtype, masked):
    """FAISS answers -1 for it, and row -1 is the last one."""
    options = {"num_clusters": 2, "nprobe": 2, "pq_m": 2, "pq_bits": 2, "m": 4} if index != "flat" else {}
    memory = AssociativeMemory(20, 4, index_type=index, dtype=dtype, **options)
    memory.add(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), Entries(documents=torch.arange(12)))
    origin = Entries(documents=torch.tensor([3, 3]), positions=torch.tensor([-1, -1])) if masked else Entries()
    ids, distances = memory.search(torch.tensor([[1e20] * 4, [0.0] * 4]), 3, origin=origin)
    assert ids[0].tolist() == [-1, -1, -1]
    assert distances[0].tolist() == [torch.inf] * 3
    assert (ids[1] >= 0).all()
    assert not memory[ids[0]].any()


def test_rows_beyond_float32_hide_no_others():
    memory = AssociativeMemory(20, 4)
    memory.add(torch.cat((torch.full((9, 4), 1e20), torch.ones(2, 4))))
    ids, distances = memory.search(torch.zeros(6, 4), 5)
    assert ids.tolist() == [[9, 10, -1, -1, -1]] * 6
    assert distances[:, :2].tolist() == [[4.0, 4.0]] * 6


def test_queries_that_are_no_numbers_find_nothing():
    queries = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [1.0, 0.0]])
    for metric in METRICS:
        distances, found = nearest(queries, torch.ones(9, 2), k=2, metric=metric)
        assert found[:2].tolist() == [[-1, -1]] * 2
        assert distances[:2].isinf().all()
        assert found[2].tolist() == [0, 1]
