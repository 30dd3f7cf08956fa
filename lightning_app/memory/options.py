"""The options of an associative memory, checked once when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch

from lightning_app.errors import InputError
from lightning_app.memory.kinds import Eviction, IndexType, Metric, Storage

COMPETING = ("random", "least_surprising", "lowest_score")  # a new entry may be the one that goes
STORAGE = {"float32": torch.float32, "float16": torch.float16}
CHOICES = {"index_type": IndexType, "metric": Metric, "eviction": Eviction, "dtype": Storage}
LEAST = {"memory_size": 1, "memory_dim": 1, "num_search_results": 1, "span_length": 0, "seed": 0, "m": 2}
LEAST |= dict.fromkeys(("num_clusters", "nprobe", "pq_m", "pq_bits", "ef_construction", "ef_search"), 1)
POINTS_PER_CENTROID = 39  # what FAISS asks of k-means; a small memory has to do with fewer


@dataclass(frozen=True, kw_only=True)
class AdvancedMemory:
    """What few runs change of a memory.

    Args:
        nprobe: how many of the lists of `ivf` and `ivfpq` a query looks into.
        pq_m: codes of `ivfpq` per vector.
        pq_bits: bits per code.
        m: links of `hnsw` (Malkov and Yashunin 2016, arXiv:1603.09320).
        ef_construction: candidates of `hnsw` while it is built.
        ef_search: candidates of `hnsw` in a search.
        eviction: `oldest`: smallest id. `least_recently_used`: last added or touched at the earliest tick.
            `least_useful`: smallest (1 + uses) x strength. Of the other three the new entries compete with the old:
            `random` keeps a uniform sample of all that was ever written; `least_surprising` those whose next token had
            the most nats when it was seen; `lowest_score` those that the reader's writer scores highest. Equal ones:
            smallest id.
        fading: what an entry's score (of `least_surprising` and `lowest_score`, in nats) loses while `memory_size`
            others are written. 0: what was once worth the most stays for ever.
        dtype: of the stored vectors; searches compute in float32.
        path: a file that holds the vectors instead of RAM (an index of another type than `flat` has copies in RAM).
        seed: of `forget_randomly`, and of an index's clusters.
    """

    nprobe: int = 8
    pq_m: int = 8
    pq_bits: int = 8
    m: int = 32
    ef_construction: int = 100
    ef_search: int = 64
    eviction: Eviction = "oldest"
    fading: float = 4.0
    dtype: Storage = "float32"
    path: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class MemoryOptions(AdvancedMemory):
    """How an `AssociativeMemory` stores and searches.

    Args:
        memory_size: entries at most.
        memory_dim: width of the vectors.
        index_type: `flat` is exact. The others search exactly until there are enough vectors to train on, and wherever
            the index yields fewer than k entries that a query may see. On a GPU every search is exact.
        num_clusters: lists of `ivf` and `ivfpq`.
        num_search_results: k of a search that gives none.
        forgetfulness_factor: probability of each entry to go in one `forget_randomly`.
        metric: distances are |q - x|^2 (`l2`), -q.x (`inner_product`), 1 - cos(q, x) (`cosine`; 1 for a zero vector).
        span_length: tokens of text that go with each entry.

    Raises:
        InputError: an option out of range, or two that contradict each other.
    """

    memory_size: int = 10_000
    memory_dim: int = 768
    index_type: IndexType = "flat"
    num_clusters: int = 1024
    num_search_results: int = 5
    forgetfulness_factor: float = 0.001
    metric: Metric = "l2"
    span_length: int = 0

    def __post_init__(self) -> None:
        for name, literal in CHOICES.items():
            if getattr(self, name) not in get_args(literal):
                raise InputError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(get_args(literal))}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: give at least {least}")
        if not 0 <= self.fading < math.inf:
            raise InputError(f"fading is {self.fading}: give a number from 0 on")
        if not 0 <= self.forgetfulness_factor < 1:
            raise InputError(f"forgetfulness_factor is {self.forgetfulness_factor}: give a number from 0 to below 1")
        if self.index_type in ("ivf", "ivfpq"):
            self._check_clusters()
        if self.index_type == "ivfpq":
            self._check_codes()

    def _check_clusters(self) -> None:
        size, clusters = self.memory_size, self.num_clusters
        if clusters > size:
            raise InputError(f"num_clusters {clusters} is more than memory_size {size}: lower it, or use flat")
        if self.nprobe > clusters:
            raise InputError(f"nprobe {self.nprobe} is more than num_clusters {clusters}: lower it")

    def _check_codes(self) -> None:
        size, bits = self.memory_size, self.pq_bits
        if self.memory_dim % self.pq_m:
            raise InputError(f"pq_m {self.pq_m} does not divide memory_dim {self.memory_dim}: choose a divisor")
        if bits > 12 or 2**bits > size:
            limit = f"12, and for memory_size {size} at most {size.bit_length() - 1}"
            raise InputError(f"pq_bits is {bits}: give at most {limit}")

    @property
    def storage(self) -> torch.dtype:
        """The type of the stored vectors."""
        return STORAGE[self.dtype]

    @property
    def clusters(self) -> int:
        """The clusters of the index's coarsest or finest k-means, whichever has more; 0: nothing to train."""
        codes = 2**self.pq_bits if self.index_type == "ivfpq" else 0
        return max(self.num_clusters, codes) if self.index_type in ("ivf", "ivfpq") else 0

    @property
    def enough(self) -> int:
        """Vectors to train an index on: 39 for each cluster, or half of the capacity, and one for each at least."""
        return max(self.clusters, min(POINTS_PER_CENTROID * self.clusters, self.memory_size // 2), 1)
