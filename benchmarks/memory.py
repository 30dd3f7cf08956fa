"""The associative memory beside raw FAISS, and a training step that reads from it beside the plain one."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import faiss
import torch
from torch import Tensor

from benchmarks.common import Contestant, Row, Run, Table, Timings, compare, main, ratio_row
from benchmarks.same_weights import seeded_decoder
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import ConcatReader
from lightning_app.memory.readers.bank import MemoryBank
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.losses import cross_entropy

WIDTH, K, BATCH, BLOCK = 768, 5, 4, 128
GPT2 = {"vocab_size": 50_257, "block_size": BLOCK, "embedding_dim": WIDTH, "layers": 12, "heads": 12}
SMALL = {"vocab_size": 300, "block_size": BLOCK, "embedding_dim": 32, "layers": 1, "heads": 2}
CLUSTERS = 1_000  # of the vectors that an approximate index is tried on
ADDED = 256


def vectors(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def clustered(n: int, width: int, seed: int, *, noise: float = 0.5) -> Tensor:
    """Around `CLUSTERS` centres: what hidden states look like more than noise without any structure does."""
    generator = torch.Generator().manual_seed(seed)
    centres = vectors(CLUSTERS, width, 0)
    return centres[torch.randint(CLUSTERS, (n,), generator=generator)] + noise * vectors(n, width, seed + 1)


# Search and read. A run returns the sum of the ids found.


def raw_faiss(entries: int, width: int) -> Run:
    index = faiss.IndexFlatL2(width)
    index.add(vectors(entries, width, 0).numpy())
    queries = vectors(BATCH * BLOCK, width, 1).numpy()
    faiss.omp_set_num_threads(1)
    return lambda: int(index.search(queries, K)[1].sum())


def search_and_read(entries: int, width: int, masked: bool = False) -> Run:
    bank = MemoryBank(lambda: AssociativeMemory(entries, width, num_search_results=K), "shared", 1)
    n = torch.arange(entries)
    bank.shared.add(vectors(entries, width, 0), Entries(documents=n // 1000 + 1, positions=n % 1000))
    queries = vectors(BATCH * BLOCK, width, 1).view(BATCH, BLOCK, width)
    rows = torch.arange(BATCH)
    documents = torch.full((BATCH, BLOCK), 1 if masked else -1)  # masked: of a document that is in the memory
    origin = Entries(documents=documents, positions=torch.full_like(documents, 500))

    def run() -> int:
        ids, _ = bank.search(queries, rows, origin)
        bank.vectors(ids, rows)
        return int(ids.sum())

    return run


# A training step. A run returns the loss, which the sides do not share: one of them reads.


def plain_step(options: dict[str, int]) -> Run:
    model = seeded_decoder(**options)
    return _step(model, lambda ids: model(ids), lambda: None)


def concat_step(options: dict[str, int], entries: int) -> Run:
    width = options["embedding_dim"]
    reader = ConcatReader(memory_size=entries, num_search_results=K)
    model = MemoryLM(seeded_decoder(**options), [reader])
    reader.bank.shared.add(vectors(entries, width, 0))
    updates = []

    def forward(ids: Tensor) -> Tensor:
        out = model.run(ids, TokenContext.of_session(ids, start=0, new=ids.shape[1]))
        updates.append(out.reader_outputs[0].update)
        return out.logits

    def write() -> None:
        reader.bank.write(updates.pop(), training=True)

    return _step(model, forward, write)


def _step(model: torch.nn.Module, forward: Callable[[Tensor], Tensor], after: Callable[[], None]) -> Run:
    """Forward, backward, clipping, fused AdamW, and what the memory writes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    vocabulary, generator = model.vocab_size, torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (BATCH, BLOCK + 1), generator=generator)

    def run() -> float:
        loss = cross_entropy(forward(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after()
        return loss.item()

    return run


# An approximate index. A run returns the ids found.


def indexed(entries: int, width: int, index_type: str, num_clusters: int) -> Run:
    torch.set_num_threads(os.cpu_count() or 1)  # to train the index; the search is on one thread
    options = {"num_clusters": num_clusters, "nprobe": 4} if index_type == "ivf" else {}
    memory = AssociativeMemory(entries, width, index_type=index_type, num_search_results=K, **options)
    memory.add(clustered(entries, width, 1))
    queries = clustered(BATCH * BLOCK, width, 3)
    memory.search(queries)  # builds the index
    torch.set_num_threads(1)
    return lambda: memory.search(queries)[0].tolist()


def recall(exact: list[list[int]], found: list[list[int]]) -> float:
    pairs = [(set(a), set(b)) for a, b in zip(exact, found, strict=True)]
    return statistics.mean(len(a & b) / len(a) for a, b in pairs)


# Adding to a full memory. A run is 20 additions.


def ring_write(entries: int, width: int) -> Run:
    ring, new, at = vectors(entries, width, 0), vectors(ADDED, width, 1), [0]

    def run() -> int:
        for _ in range(20):
            ring[at[0] : at[0] + ADDED] = new
            at[0] = (at[0] + ADDED) % (entries - ADDED)
        return 0

    return run


def add_to_full(entries: int, width: int) -> Run:
    memory, new = AssociativeMemory(entries, width), vectors(ADDED, width, 1)
    memory.add(vectors(entries, width, 0))

    def run() -> int:
        for _ in range(20):
            memory.add(new)
        return 0

    return run


# The tables


def search_rows(entries: int, width: int, rounds: int) -> list[Row]:
    size = {"entries": entries, "width": width}
    sides = [
        Contestant("faiss", raw_faiss, size),
        Contestant("ours", search_and_read, size),
        Contestant("masked", search_and_read, {**size, "masked": True}),
    ]
    timings = compare(sides, rounds=rounds)
    assert timings.results["faiss"] == timings.results["ours"], "the sides found other entries"
    name = f"search and read, {BATCH} x {BLOCK} queries in {entries:,} x {width}, k = {K}"
    return [
        _cost(f"{name}: ours / raw FAISS search", timings, "ours", "faiss", at_most=1.3),
        _cost("the same, 1 entry in 20 hidden from the queries: ours / raw FAISS", timings, "masked", "faiss"),
    ]


def _cost(what: str, timings: Timings, name: str, rival: str, *, at_most: float | None = None) -> Row:
    """How many times the CPU time of `rival` it takes."""
    row = ratio_row(what, timings.ratios(rival, name))
    middle = statistics.median(timings.ratios(rival, name))
    met = None if at_most is None else middle <= at_most
    return Row(row.name, row.value, row.spread, "" if at_most is None else f"<= {at_most:g} x", met)


def step_rows(options: dict[str, int], entries: int, rounds: int) -> list[Row]:
    sides = [
        Contestant("plain", plain_step, {"options": options}),
        Contestant("concat", concat_step, {"options": options, "entries": entries}),
    ]
    timings = compare(sides, rounds=rounds, warmup=1)
    what = f"a training step, {options['layers']} x {options['embedding_dim']}, {entries:,} entries: concat / plain"
    return [_cost(what, timings, "concat", "plain", at_most=1.35)]


def index_rows(entries: int, width: int, num_clusters: int, rounds: int) -> list[Row]:
    size = {"entries": entries, "width": width, "num_clusters": num_clusters}
    sides = [Contestant(name, indexed, {**size, "index_type": name}) for name in ("flat", "ivf")]
    timings = compare(sides, rounds=rounds, warmup=1)
    found = recall(timings.results["flat"][0], timings.results["ivf"][0])
    name = f"{entries:,} x {width} around {CLUSTERS:,} centres, ivf with {num_clusters:,} lists, 4 probed"
    return [
        timings.row(f"{name}: exact / ivf", "ivf", "flat", at_least=8),
        Row(f"{name}: recall@{K}", f"{found:.3f}", target=">= 0.95", met=found >= 0.95),
    ]


def add_rows(entries: int, width: int, rounds: int) -> list[Row]:
    size = {"entries": entries, "width": width}
    timings = compare([Contestant("ring", ring_write, size), Contestant("ours", add_to_full, size)], rounds=rounds)
    each = [1e3 * seconds / 20 for seconds in timings.seconds["ours"]]
    middle = statistics.median(each)
    name = f"adding {ADDED} to a full memory of {entries:,} x {width}"
    return [
        Row(name, f"{middle:.2f} ms", f"{min(each):.2f} to {max(each):.2f}", "< 2 ms", middle < 2),
        _cost(f"{name}: ours / overwriting rows of a plain tensor", timings, "ours", "ring"),
    ]


def thread_row() -> Row:
    """FAISS follows torch's setting: else two pools of threads would share the cores."""
    memory, threads = AssociativeMemory(100, 8), torch.get_num_threads()
    memory.add(vectors(100, 8, 0))
    followed = []
    for n in (2, 1):
        torch.set_num_threads(n)
        memory.search(vectors(50, 8, 1))
        followed.append(faiss.omp_get_max_threads() == n)
    torch.set_num_threads(threads)
    wall = _wall_on_two_threads()
    return Row("FAISS uses as many threads as torch", f"{all(followed)}", wall, "True", all(followed))


def _wall_on_two_threads() -> str:
    """Wall time of searches between matmuls on two threads, over that of both on their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    memory, queries, matrix = AssociativeMemory(10_000, 256), vectors(512, 256, 1), vectors(1024, 1024, 2)
    memory.add(vectors(10_000, 256, 0))

    def wall(*work: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(10):
            for some in work:
                some()
        return time.perf_counter() - start

    def search() -> object:
        return memory.search(queries)

    def matmul() -> object:
        return matrix @ matrix

    wall(search, matmul)
    ratio = statistics.median(wall(search, matmul) / (wall(search) + wall(matmul)) for _ in range(5))
    torch.set_num_threads(before)
    return f"in turns / apart: {ratio:.2f} x wall time"


NOTES = f"""`AssociativeMemory` on one thread. A cost of 1.1 x is 1.1 times the CPU time of the other side. "Search and
read" is a batched search and the look-up of the vectors found; FAISS's side is `IndexFlatL2.search` alone, and both
find the same entries. The training steps are fp32, batch {BATCH} x {BLOCK}: forward, loss, backward, clipping,
fused AdamW; with `concat` also search, reading, and writing to a full memory."""


def tables(quick: bool = False) -> list[Table]:
    entries, many, width, rounds = (500, 2_000, 32, 1) if quick else (10_000, 100_000, WIDTH, 7)
    rows = search_rows(entries, width, 2 * rounds)
    rows += step_rows(SMALL if quick else GPT2, entries, 1 if quick else 5)
    rows += add_rows(many, width, rounds)
    rows += index_rows(many, width, 16 if quick else 1_264, 1 if quick else 5)
    return [Table("Memory", [*rows, thread_row()], NOTES)]


if __name__ == "__main__":
    main(tables)
