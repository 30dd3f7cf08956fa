"""The associative memory: ids, eviction, payload, masks, forgetting, state and bad input."""

import copy
import io
import multiprocessing

import pytest
import torch

from experiments.fading import age_memory
from lightning_app.errors import InputError
from lightning_app.memory import exact_search as memory_search
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory

D = 6


def rows(n, seed=0, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def filled(n=10, **options):
    memory = AssociativeMemory(options.pop("memory_size", 20), D, **options)
    vectors = rows(n)
    memory.add(
        vectors, Entries(tokens=torch.arange(n) + 100, documents=torch.arange(n) // 5, positions=torch.arange(n) % 5)
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


def test_a_zero_vector_is_at_a_cosine_distance_of_one():
    memory = AssociativeMemory(4, D, metric="cosine")
    memory.add(torch.stack((-torch.ones(D), torch.zeros(D), torch.ones(D))))
    ids, distances = memory.search(torch.ones(1, D), 2)
    assert ids.tolist() == [[2, 1]]
    torch.testing.assert_close(distances, torch.tensor([[0.0, 1.0]]))


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
    origin = Entries(documents=torch.tensor([1, 1, -1]), positions=torch.tensor([2, 3, 0]))
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


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_several_blocks_equal_one(metric, dtype, monkeypatch):
    memory = AssociativeMemory(200, D, metric=metric, dtype=dtype)
    memory.add(rows(150))
    expected = memory.search(rows(9, seed=1), 7)
    for block_bytes, scores in ((4 * D * 40, 1 << 24), (1 << 26, 9 * 13)):
        monkeypatch.setattr(memory_search, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(memory_search, "BLOCK_SCORES", scores)
        ids, distances = memory.search(rows(9, seed=1), 7)
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(distances, expected[1])


def test_search_is_the_same_under_autocast_and_low_matmul_precision():
    memory = AssociativeMemory(200, 64, metric="cosine")
    memory.add(rows(200, d=64))
    expected = memory.search(rows(20, seed=1, d=64))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = memory.search(rows(20, seed=1, d=64))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(map(torch.equal, found, expected))


def test_evicted_entries_are_those_the_rule_says():
    for eviction, left in {
        "oldest": [2, 3, 4, 5],
        "least_recently_used": [1, 3, 4, 5],
        "least_useful": [1, 2, 4, 5],
    }.items():
        memory = AssociativeMemory(4, D, eviction=eviction)
        memory.add(rows(4))
        memory.tick()
        memory.touch(torch.tensor([2, 2, 2, 0, 0, 1, 1]))
        memory.tick()
        memory.touch(torch.tensor([3, 1]))  # uses 2, 3, 3, 1; last used 1, 2, 1, 2
        memory.add(rows(2, seed=1))
        assert memory.ids().tolist() == left, eviction


@pytest.mark.parametrize("eviction", ["least_surprising", "lowest_score"])
def test_by_a_score_the_new_compete_with_the_old(eviction: str):
    memory = AssociativeMemory(3, D, eviction=eviction, fading=0.0)

    def add(*scores: float) -> list[int]:
        memory.add(rows(len(scores), seed=int(memory.next_id)), Entries(strengths=torch.tensor(scores)))
        return memory.ids().tolist()

    assert add(2.0, 5.0) == [0, 1]
    assert add(1.0, 3.0, 4.0) == [1, 3, 4]  # 0 goes, and 2 is not let in
    assert add(0.5) == [1, 3, 4]
    assert add(3.0) == [1, 4, 6]  # of equal ones the new stays
    assert add(9.0, 8.0, 7.0, 7.0, 1.0) == [7, 8, 10]
    assert memory.payload(memory.ids()).strengths.tolist() == [9, 8, 7]


def test_a_score_fades_with_what_is_written_after_it():
    """By 2 while two entries are written: an old 3 is worth as much as a new 1."""
    memory = AssociativeMemory(2, D, eviction="lowest_score", fading=2.0)

    def add(*scores: float) -> list[int]:
        memory.add(rows(len(scores), seed=int(memory.next_id)), Entries(strengths=torch.tensor(scores)))
        return memory.ids().tolist()

    assert add(3.0, 9.0) == [0, 1]
    assert add(0.5) == [0, 1]  # 3 - 2 > 0.5
    assert add(0.5) == [1, 3]  # 3 - 3 < 0.5
    with pytest.raises(InputError, match=r"fading is -1"):
        AssociativeMemory(2, D, fading=-1.0)


def test_a_random_memory_is_a_uniform_sample_of_all_that_was_written():
    def kept(seed: int) -> torch.Tensor:
        memory = AssociativeMemory(8, D, eviction="random", seed=seed)
        for start in range(0, 64, 4):
            memory.add(rows(4, seed=start))
        return memory.ids()

    assert torch.equal(kept(3), kept(3))
    ids = torch.cat([kept(seed) for seed in range(24)])
    counts = torch.histc(ids.float(), bins=4, min=0, max=63)
    assert len(ids) == 24 * 8
    assert (counts - 48).abs().max() < 24  # four deviations of a binomial of 192 and 1 / 4
    unlimited = AssociativeMemory(4, D, eviction="random")
    assert unlimited.add(rows(4)).tolist() == unlimited.ids().tolist()


def test_an_old_use_counts_less_than_being_new():
    memory = AssociativeMemory(2, D, eviction="least_useful")
    memory.touch(memory.add(rows(1)))
    memory.strengths *= 0.25
    memory.add(rows(1))  # (1 + 1) x 0.25 against (1 + 0) x 1
    memory.add(rows(1))
    assert memory.ids().tolist() == [1, 2]


def test_more_than_the_capacity_at_once():
    memory, _ = filled(10, memory_size=7)
    vectors = rows(16, seed=2)
    assert memory.add(vectors).tolist() == list(range(10, 26))
    assert memory.ids().tolist() == list(range(19, 26))
    assert torch.equal(memory.get_all_embeddings(), vectors[-7:])
    with pytest.raises(InputError, match="no entry has the id 18"):
        memory[torch.tensor([18])]


def test_payload_is_what_was_given():
    memory = AssociativeMemory(5, D, span_length=3)
    spans = torch.tensor([[-1, 4, 5], [6, 7, 8]])
    memory.add(rows(2), Entries(tokens=torch.tensor([7, 8]), spans=spans))
    memory.tick()
    memory.tick()
    memory.update(torch.tensor([1]), rows(1), Entries(tokens=torch.tensor([9])))
    memory.touch(torch.tensor([[1, 1, -1, 55]]))
    memory.strengths *= 0.25
    found = memory.payload(torch.tensor([[1, -1, 0]]))
    assert found.tokens.tolist() == [[9, -1, 7]]
    assert found.documents.tolist() == [[-1, -1, -1]]
    assert found.spans.tolist() == [[[6, 7, 8], [-1, -1, -1], [-1, 4, 5]]]
    assert found.ages.tolist() == [[2, 0, 2]]
    assert found.uses.tolist() == [[2, 0, 0]]
    assert found.strengths.tolist() == [[0.25, 0, 0.25]]


def test_forgetting_has_the_expected_rate():
    n, f, t = 4000, 0.01, 50
    memory = AssociativeMemory(n, 1, forgetfulness_factor=f)
    memory.add(rows(n, d=1))
    assert sum(memory.forget_randomly() for _ in range(t)) == n - memory.size()
    p = (1 - f) ** t
    assert abs(memory.size() - n * p) < 3 * (n * p * (1 - p)) ** 0.5


def test_a_small_memory_forgets_too():
    memory = AssociativeMemory(5, D, forgetfulness_factor=0.02)
    memory.add(rows(5))
    steps = 0
    while memory.size() and steps < 2000:
        memory.forget_randomly()
        steps += 1
    assert memory.size() == 0
    assert 20 < steps < 1000


def test_ranks_and_resumed_runs_forget_the_same():
    memory, other = (filled(20, forgetfulness_factor=0.2)[0] for _ in range(2))
    torch.manual_seed(1)
    for _ in range(3):
        memory.forget_randomly()
        torch.rand(1)
        other.forget_randomly()
    resumed = AssociativeMemory(20, D, forgetfulness_factor=0.2)
    resumed.load_state_dict(other.state_dict())
    another = AssociativeMemory(20, D, forgetfulness_factor=0.2, seed=1)
    another.load_state_dict(other.state_dict())
    for copied in (memory, resumed, another):
        copied.forget_randomly()
    assert 0 < memory.size() < 20
    assert memory.ids().tolist() == resumed.ids().tolist()
    assert memory.ids().tolist() != another.ids().tolist()


def test_equal_contents_leave_nothing_behind_in_free_slots():
    memory, _ = filled(10)
    memory.remove(torch.arange(2, 10))
    memory.reset()
    for name, value in AssociativeMemory(20, D).state_dict().items():
        if name != "next_id":
            assert torch.equal(memory.state_dict()[name], value), name


def test_types_stay_when_the_module_is_cast():
    memory, vectors = filled(10)
    memory.to(torch.bfloat16)
    assert memory.vectors.dtype == torch.float32
    assert torch.equal(memory.get_all_embeddings(), vectors)
    assert memory.search(vectors.bfloat16(), 1)[0].flatten().tolist() == list(range(10))


def test_config_builds_the_same():
    options = {"index_type": "ivf", "num_clusters": 4, "nprobe": 2, "metric": "cosine", "span_length": 2, "seed": 5}
    memory = AssociativeMemory(30, D, **options)
    assert options.items() <= memory.config().items()
    assert AssociativeMemory(**memory.config()).config() == memory.config()
    assert AssociativeMemory().config()["memory_size"] == 10_000


NAN = torch.full((1, D), torch.nan)
BAD = [
    (lambda m: m.add(rows(2, d=5)), r"\(2, 5\), but memory_dim is 6"),
    (lambda m: m.add(rows(2)[0]), r"\(6,\): give \(N, 6\)"),
    (lambda m: m.add(NAN), r"6 of 6 values of the vectors are not finite \(nan\)"),
    (lambda m: m.add(torch.full((1, D), torch.inf)), "not finite"),
    (lambda m: m.add(torch.ones(1, D, dtype=torch.long)), "torch.int64: give floating point"),
    (lambda m: m.add(rows(2), Entries(tokens=torch.arange(3))), r"tokens are torch.int64 \(3,\): give int64 \(2,\)"),
    (lambda m: m.add(rows(2), Entries(spans=torch.ones(2, 4).int())), r"spans .* \(2, 4\): give int64 \(2, 0\)"),
    (
        lambda m: m.update(torch.tensor([1, 99]), rows(2)),
        r"no entry has the id 99 \(1 such ids\).*10 entries, ids 0 to 9",
    ),
    (lambda m: m.update(torch.tensor([1, 1]), rows(2)), "the id 1 is given 2 times"),
    (lambda m: m.update(torch.tensor([1, 2]), rows(3)), "3 vectors for 2 ids"),
    (lambda m: m.update(torch.tensor([1]), NAN), "not finite"),
    (lambda m: m.update(torch.tensor([1]), rows(1), Entries(tokens=torch.arange(2))), r"tokens .* \(2,\)"),
    (lambda m: m.remove(torch.tensor([3, -1])), "no entry has the id -1"),
    (lambda m: m.remove(torch.tensor([3, 3])), "the id 3 is given 2 times"),
    (lambda m: m.remove(torch.tensor([0.5])), "ids are torch.float32"),
    (lambda m: m.remove(torch.tensor([[1]])), r"\(1, 1\): give \(N,\)"),
    (lambda m: m[torch.tensor([10])], "no entry has the id 10"),
    (lambda m: m.payload(torch.tensor([[-2]])), "no entry has the id -2"),
    (lambda m: m.search(NAN), "not finite"),
    (lambda m: m.search(rows(1, d=5)), "memory_dim is 6"),
    (lambda m: m.search(rows(1), 0), "k is 0"),
    (lambda m: m.search(rows(1), m.memory_size + 1), "ask for 1 result up to as many as fit"),
    (
        lambda m: m.search(rows(2), origin=Entries(documents=torch.arange(3), positions=torch.arange(3))),
        r"\(3,\), but the queries are \(2, 6\)",
    ),
    (lambda m: m.search(rows(1), own_document_only=True), "origin has no documents"),
    (lambda m: age_memory(m, 1.5), "decay is 1.5"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_changes_nothing(call, message):
    memory, _ = filled(10)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    with pytest.raises(InputError, match=message):
        call(memory)
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())
    assert memory.search(rows(1))[0].shape == (1, 5)


def test_values_beyond_half_precision_are_refused():
    memory = AssociativeMemory(5, D, dtype="float16")
    with pytest.raises(InputError, match=r"70000 does not fit float16"):
        memory.add(torch.full((1, D), 7e4))
    assert memory.size() == 0


def test_large_finite_values_are_no_bad_input():
    memory = AssociativeMemory(5, D, metric="cosine")
    memory.add(torch.full((2, D), 2e38))
    assert memory.size() == 2


def test_a_damaged_checkpoint_is_refused():
    memory, _ = filled(10)
    state = {name: value.clone() for name, value in memory.state_dict().items()}
    state["slot_ids"][3] = 4
    other = AssociativeMemory(20, D)
    with pytest.raises(InputError, match="slot_ids are damaged"):
        other.load_state_dict(state)


def in_a_fork(memory, queries, pipe):
    pipe.send(memory.search(queries)[0].tolist())


def test_search_works_in_a_forked_process():
    """FAISS's OpenMP hangs there with more than one thread, if it ran before the fork."""
    memory, _ = filled(10)
    queries = rows(40, seed=1)
    torch.set_num_threads(2)
    try:
        expected = memory.search(queries)[0].tolist()
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=in_a_fork, args=(memory, queries, theirs))
        child.start()
        try:
            assert ours.poll(20)
            assert ours.recv() == expected
        finally:
            child.kill()
            child.join()
    finally:
        torch.set_num_threads(1)
