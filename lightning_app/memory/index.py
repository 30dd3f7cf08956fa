"""Approximate FAISS indexes over the slots of a memory: caches that follow the vectors lazily and can be rebuilt.

FAISS labels are not slots: each row gets the next label whenever it is written, and its older label is dead. So no
index has to remove or overwrite at once (HNSW can do neither), and no result shows what a slot held before.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.memory.exact_search import set_up_faiss
from lightning_app.memory.options import POINTS_PER_CENTROID, MemoryOptions

import faiss  # isort: skip

DEAD_PER_LIVE = 0.5  # rebuild an index with more dead labels than this
ADDED_AT_ONCE = 8192  # rows
OVERSAMPLED = {"ivf": 1, "hnsw": 1, "ivfpq": 8}  # candidates per result; their exact distances choose among them


def empty_index(options: MemoryOptions) -> Any:
    """A new FAISS index of the type that the options name, untrained and empty."""
    width, kind = options.memory_dim, faiss.METRIC_L2 if options.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index: Any
    if options.index_type == "hnsw":
        index = faiss.IndexHNSWFlat(width, options.m, kind)
        index.hnsw.efConstruction = options.ef_construction
        return index
    quantizer = faiss.IndexFlat(width, kind)
    if options.index_type == "ivf":
        index = faiss.IndexIVFFlat(quantizer, width, options.num_clusters, kind)
    else:
        index = faiss.IndexIVFPQ(quantizer, width, options.num_clusters, options.pq_m, options.pq_bits, kind)
        _set_up_clustering(index.pq.cp, seed=options.seed)
    _set_up_clustering(index.cp, seed=options.seed)
    index.nprobe = options.nprobe
    return index


def _set_up_clustering(clustering: Any, *, seed: int) -> None:
    clustering.seed = seed
    clustering.init_method = faiss.ClusteringInitMethod_AFK_MC2  # random ones put many clusters into one list
    clustering.niter = 4  # no faster lists with 10
    clustering.min_points_per_centroid = 1  # or FAISS warns on stderr
    clustering.max_points_per_centroid = 256


class SlotIndex:
    """Trains once `MemoryOptions.enough` vectors exist; retrains when as many rows have been written since."""

    def __init__(self, options: MemoryOptions):
        self._options = options
        self._index: Any = None
        self._stale = np.ones(options.memory_size, dtype=bool)
        self._label_of = np.full(options.memory_size, -1)
        self._start_over(trained_on=0)

    def _start_over(self, *, trained_on: int) -> None:
        self._slot_of = np.empty(0, dtype=np.int64)  # -1: a dead label
        self._label_of[:] = -1
        self._dead: list[np.ndarray] = []
        self.trained_on, self.written = trained_on, 0

    def mark(self, slots: np.ndarray | slice) -> None:
        """Note slots that were written or became free; the next search updates them."""
        self._stale[slots] = True

    def mark_all(self) -> None:
        """Forget the index: all vectors may have changed."""
        self._index = None
        self._stale[:] = True

    def candidates(self, queries_QD: Tensor, vectors_ND: Tensor, *, k: int) -> Tensor | None:
        """Slots likely to be near, (Q, K >= k) int64, -1 where there is none; None: too few vectors to train on."""
        set_up_faiss(self._options.memory_dim)
        self._follow(vectors_ND)
        if self._index is None:
            return None
        wanted = min(k * OVERSAMPLED[self._options.index_type], len(vectors_ND))
        if self._options.index_type == "hnsw":
            self._index.hnsw.efSearch = max(self._options.ef_search, wanted)
        labels = self._index.search(self._prepared(queries_QD), wanted)[1]
        return torch.from_numpy(np.where(labels < 0, -1, self._slot_of[labels]))

    def _follow(self, vectors_ND: Tensor) -> None:
        """Bring the index up to date with the vectors (the first N slots)."""
        if self._index is None and len(vectors_ND) < self._options.enough:
            return
        stale = np.flatnonzero(self._stale)
        if self._index is None or self._has_drifted(stale[stale < len(vectors_ND)]):
            self._rebuild(vectors_ND)
        else:
            self._forget(stale)
            self._add(stale[stale < len(vectors_ND)], vectors_ND)
        self._stale[:] = False
        if sum(map(len, self._dead)) > DEAD_PER_LIVE * len(vectors_ND):
            self._drop_dead(vectors_ND)

    def _has_drifted(self, stale: np.ndarray) -> bool:
        return self._options.clusters > 0 and self.written + len(stale) >= self.trained_on

    def _rebuild(self, vectors_ND: Tensor) -> None:
        self._index = empty_index(self._options)
        if self._options.clusters > 0:
            count = min(len(vectors_ND), POINTS_PER_CENTROID * self._options.clusters)
            chosen = np.random.default_rng(self._options.seed).choice(len(vectors_ND), count, replace=False)
            self._index.train(self._prepared(vectors_ND[torch.from_numpy(np.sort(chosen))]))
        self._start_over(trained_on=len(vectors_ND))
        self._add(np.arange(len(vectors_ND)), vectors_ND)
        self.written = 0

    def _forget(self, slots: np.ndarray) -> None:
        labels = self._label_of[slots]
        dead = labels[labels >= 0]
        self._slot_of[dead] = -1
        self._label_of[slots] = -1
        self._dead.append(dead)

    def _add(self, slots: np.ndarray, vectors_ND: Tensor) -> None:
        first = len(self._slot_of)
        labels = np.arange(first, first + len(slots))
        for start in range(0, len(slots), ADDED_AT_ONCE):
            part = slice(start, start + ADDED_AT_ONCE)
            rows = self._prepared(vectors_ND[torch.from_numpy(slots[part])])
            if self._options.index_type == "hnsw":
                self._index.add(rows)  # its labels are consecutive
            else:
                self._index.add_with_ids(rows, labels[part])
        self._slot_of = np.concatenate((self._slot_of, slots))
        self._label_of[slots] = labels
        self.written += len(slots)

    def _drop_dead(self, vectors_ND: Tensor) -> None:
        """Remove dead labels from inverted lists; rebuild an HNSW graph, which cannot remove."""
        if self._options.index_type != "hnsw":
            self._index.remove_ids(np.concatenate(self._dead))
            self._dead = []
        else:
            self._rebuild(vectors_ND)

    def _prepared(self, rows_ND: Tensor) -> np.ndarray:
        rows = rows_ND.float()
        return np.ascontiguousarray((F.normalize(rows, dim=1) if self._options.metric == "cosine" else rows).numpy())

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotIndex:
        """Copy the trained index too, which takes seconds to build."""
        other = SlotIndex(self._options)
        state = {name: value for name, value in vars(self).items() if name != "_index"}
        vars(other).update(copy.deepcopy(state, memo))
        if self._index is not None:
            other._index = faiss.clone_index(self._index)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return SlotIndex, (self._options,)  # a pickle carries no cache
