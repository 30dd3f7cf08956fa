"""The memory against a dictionary: random sequences of operations, searched by brute force in fp64 after each."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.fading import age_memory, garbage_collect
from lightning_app.memory.exact_search import nearest
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory

D, SPAN = 4, 2
SIZES = st.integers(1, 13)
QUICK = settings(
    derandomize=True, deadline=None, max_examples=6, database=None, suppress_health_check=[HealthCheck.too_slow]
)
INDEXES = {
    "flat": {},
    "ivf": {"num_clusters": 2, "nprobe": 1},
    "ivfpq": {"num_clusters": 2, "nprobe": 2, "pq_m": 2, "pq_bits": 2},
    "hnsw": {"m": 4, "ef_construction": 8, "ef_search": 4},
}
METRICS = ["l2", "inner_product", "cosine"]
OFTEN = {("flat", "l2"), ("ivf", "inner_product"), ("ivfpq", "l2"), ("hnsw", "cosine")}


class Model:
    """What the memory should hold: id -> its vector and everything else that is known of it."""

    def __init__(self, size, eviction, dtype):
        self.size, self.eviction, self.dtype = size, eviction, getattr(np, dtype)
        self.entries, self.next_id, self.clock = {}, 0, 0

    def worth(self, i):
        entry = self.entries[i]
        useful = np.float32(1 + entry["uses"]) * entry["strength"]
        return {"oldest": (i,), "least_recently_used": (entry["used"], i), "least_useful": (useful, i)}[self.eviction]

    def add(self, vectors, payload):
        kept = min(len(vectors), self.size)
        victims = sorted(self.entries, key=self.worth)[: max(0, len(self.entries) + kept - self.size)]
        for i in victims:
            del self.entries[i]
        for n, vector in enumerate(vectors):
            if n >= len(vectors) - kept:
                fresh = {"uses": 0, "used": self.clock, "written": self.clock, "strength": np.float32(1)}
                self.entries[self.next_id + n] = fresh
                self.change(self.next_id + n, vector, payload, n)
        self.next_id += len(vectors)

    def change(self, i, vector, payload, n):
        spans = tuple(payload.spans[n].tolist())
        columns = [int(column[n]) for column in (payload.tokens, payload.documents, payload.positions)]
        self.entries[i] |= {
            "vector": vector.numpy().astype(self.dtype).astype(np.float64),
            "payload": (*columns, spans),
        }

    def distances(self, query, metric):
        """{id: distance} of all entries."""
        if not self.entries:
            return {}
        x, q = np.stack([entry["vector"] for entry in self.entries.values()]), query.double().numpy()
        if metric == "l2":
            found = ((x - q) ** 2).sum(1)
        else:
            scale = np.linalg.norm(x, axis=1) * np.linalg.norm(q) if metric == "cosine" else 1
            found = -(x @ q) / np.where(scale == 0, np.inf, scale) + (metric == "cosine")
        return dict(zip(self.entries, found, strict=True))


class Pair:
    """A memory and its model, and every operation on both."""

    def __init__(self, draw, index, metric):
        self.draw, self.metric, self.exact = draw, metric, index == "flat"
        self.rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        eviction = draw(st.sampled_from(["oldest", "least_recently_used", "least_useful"]))
        dtype = draw(st.sampled_from(["float32", "float16"]))
        self.options = {"memory_size": draw(st.integers(4, 11)), "memory_dim": D, "index_type": index, "metric": metric}
        self.options |= {"eviction": eviction, "dtype": dtype, "span_length": SPAN, "forgetfulness_factor": 0.3}
        self.options |= INDEXES[index]
        self.memory = AssociativeMemory(**self.options)
        self.model = Model(self.options["memory_size"], eviction, dtype)

    def some(self, n):
        """Vectors on a coarse grid, so that equal ones and ties occur, and what goes with them."""
        vectors = (torch.randn(n, D, generator=self.rng) * 2).round() / 2
        numbers = [torch.randint(-1, 3, (n,), generator=self.rng) for _ in range(3)]
        spans = torch.randint(-1, 9, (n, SPAN), generator=self.rng)
        return vectors, Entries(*numbers, spans)

    def chosen(self):
        """Distinct ids that exist."""
        known = sorted(self.model.entries)
        return self.draw(st.lists(st.sampled_from(known), unique=True)) if known else []

    def add(self):
        vectors, payload = self.some(self.draw(SIZES))
        ids = self.memory.add(vectors, payload)
        assert ids.tolist() == list(range(self.model.next_id, self.model.next_id + len(vectors)))
        self.model.add(vectors, payload)

    def remove(self):
        ids = self.chosen()
        self.memory.remove(torch.tensor(ids, dtype=torch.long))
        self.drop(ids)

    def drop(self, ids):
        for i in ids:
            del self.model.entries[i]

    def update(self):
        ids = self.chosen()
        vectors, payload = self.some(len(ids))
        self.memory.update(torch.tensor(ids, dtype=torch.long), vectors, payload)
        for n, i in enumerate(ids):
            self.model.change(i, vectors[n], payload, n)

    def touch(self):
        ids = self.draw(st.lists(st.integers(-1, self.model.next_id + 1), max_size=6))
        self.memory.touch(torch.tensor(ids, dtype=torch.long))
        for i in set(ids) & set(self.model.entries):
            self.model.entries[i]["uses"] += ids.count(i)
            self.model.entries[i]["used"] = self.model.clock

    def tick(self):
        self.memory.tick()
        self.model.clock += 1

    def age(self):
        age_memory(self.memory, 0.5)
        for entry in self.model.entries.values():
            entry["strength"] *= np.float32(0.5)

    def collect(self):
        weak = [i for i, entry in self.model.entries.items() if entry["strength"] < 0.2]
        assert garbage_collect(self.memory, 0.2) == len(weak)
        self.drop(weak)

    def forget(self):
        before = set(self.model.entries)
        count = self.memory.forget_randomly()
        left = set(self.memory.ids().tolist())
        assert left <= before
        assert count == len(before) - len(left)
        self.drop(before - left)

    def reset(self):
        self.memory.reset()
        self.model.entries = {}

    def save_and_load(self):
        file = io.BytesIO()
        torch.save(self.memory.state_dict(), file)
        file.seek(0)
        other = AssociativeMemory(**self.memory.config())
        if self.draw(st.booleans()):
            other.add(self.some(3)[0])
            other.search(torch.zeros(1, D), k=1)  # its caches know something else
        other.load_state_dict(torch.load(file, weights_only=True))
        self.memory = other

    def deepcopy(self):
        original, self.memory = self.memory, copy.deepcopy(self.memory)
        original.reset()

    def check(self):
        memory, entries = self.memory, self.model.entries
        assert memory.size() == len(entries)
        assert memory.ids().tolist() == sorted(entries)
        wanted = np.array([entries[i]["vector"] for i in sorted(entries)]).reshape(-1, D)
        assert memory.get_all_embeddings().double().numpy().tolist() == wanted.tolist()
        ids = torch.tensor(sorted(entries, reverse=True), dtype=torch.long)
        assert memory[ids].double().numpy().tolist() == wanted[::-1].tolist()
        self.check_payload(ids)
        before = {name: value.clone() for name, value in memory.state_dict().items()}
        self.check_search()
        assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())

    def check_payload(self, ids):
        found, entries = self.memory.payload(ids), [self.model.entries[i] for i in ids.tolist()]
        columns = zip(found.tokens.tolist(), found.documents.tolist(), found.positions.tolist(), strict=True)
        spans = map(tuple, found.spans.tolist())
        assert [(*c, s) for c, s in zip(columns, spans, strict=True)] == [entry["payload"] for entry in entries]
        assert found.ages.tolist() == [self.model.clock - entry["written"] for entry in entries]
        assert found.uses.tolist() == [entry["uses"] for entry in entries]
        assert found.strengths.tolist() == [float(entry["strength"]) for entry in entries]

    def check_search(self):
        k, kind = (
            self.draw(st.integers(1, min(14, self.memory.memory_size))),
            self.draw(st.sampled_from(["free", "origin", "own"])),
        )
        queries = self.some(3)[0]
        documents, positions = torch.randint(-1, 3, (2, 3), generator=self.rng)
        origin = Entries(documents=documents, positions=positions)
        options = {} if kind == "free" else {"origin": origin, "own_document_only": kind == "own"}
        ids, distances = self.memory.search(queries, k, **options)
        assert ids.shape == distances.shape == (3, k)
        for n, query in enumerate(queries):
            everything = self.model.distances(query, self.metric)
            seen = {i: d for i, d in everything.items() if self.visible(i, origin, n, kind)}
            self.check_result(ids[n].tolist(), distances[n].tolist(), seen, k)

    def visible(self, i, origin, n, kind):
        _, document, position, _ = self.model.entries[i]["payload"]
        own = document == origin.documents[n] and document != -1
        if kind == "own":
            return own and position < origin.positions[n]
        return kind == "free" or not (own and position >= origin.positions[n])

    def check_result(self, ids, distances, seen, k):
        """As many as there can be, each with its distance, in order; an exact index finds the nearest ones."""
        count = min(k, len(seen))
        assert ids[count:] == [-1] * (k - count)
        assert distances[count:] == [np.inf] * (k - count)
        assert len(set(ids[:count])) == count
        assert set(ids[:count]) <= set(seen)
        np.testing.assert_allclose(distances[:count], [seen[i] for i in ids[:count]], rtol=1e-5, atol=1e-5)
        assert distances == sorted(distances)
        if self.exact or count == len(seen):
            np.testing.assert_allclose(distances[:count], sorted(seen.values())[:count], rtol=1e-5, atol=1e-5)


OPERATIONS = ["add", "add", "add", "remove", "update", "touch", "tick", "age", "collect", "forget", "reset"]
OPERATIONS += ["save_and_load", "deepcopy"]


@pytest.mark.parametrize(
    ("index", "metric"),
    [
        pytest.param(index, metric, marks=() if (index, metric) in OFTEN else pytest.mark.slow)
        for index in INDEXES
        for metric in METRICS
    ],
)
def test_equals_a_dictionary(index, metric):
    @QUICK
    @given(st.data())
    def run(data):
        pair = Pair(data.draw, index, metric)
        for operation in data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=3, max_size=14)):
            getattr(pair, operation)()
            pair.check()

    run()


@QUICK
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.sampled_from(METRICS), st.booleans())
def test_the_matmul_search_of_a_gpu_equals_faiss(count, queries, k, metric, half):
    rng = torch.Generator().manual_seed(count)
    q, x = torch.randn(queries, D, generator=rng), torch.randn(count, D, generator=rng)
    x = x.half() if half else x
    found = []
    for use_faiss in (True, False):
        found.append(nearest(q, x, k=k, metric=metric, use_faiss=use_faiss))
        assert ((found[-1][1] >= 0).sum(1) == min(k, count)).all()
    assert all(map(torch.equal, *found))
