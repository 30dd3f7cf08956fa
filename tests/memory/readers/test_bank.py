"""MemoryBank: one memory or several, and the changes that a step asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.readers.bank import MemoryBank, MemoryUpdate, Scope
from lightning_app.memory.slots import Entries, joined
from lightning_app.memory.store import AssociativeMemory

M = 4


def bank_with(scope: Scope = "stream", streams: int = 2, **options: Any) -> MemoryBank:
    return MemoryBank(lambda: AssociativeMemory(**{"memory_size": 5, "memory_dim": M, **options}), scope, streams)


def update(
    rows: list[int], *, document: int = 1, removed: Tensor | None = None, used: Tensor | None = None
) -> MemoryUpdate:
    n = len(rows)
    numbers = torch.arange(n)
    vectors = torch.eye(M)[numbers % M] * (1 + numbers[:, None])
    documents = torch.full((n,), document)
    entries = Entries(numbers, documents, numbers, vectors=vectors)
    none = torch.zeros(0, 2, dtype=torch.int64)
    return MemoryUpdate(
        torch.tensor(rows), entries, none if removed is None else removed, none if used is None else used
    )


def test_each_stream_has_a_memory_and_a_shared_one_has_all():
    shared, own = bank_with("shared"), bank_with()
    for bank in (shared, own):
        counts = bank.write(update([0, 1, 1]), training=False)
        assert counts == {"writes": 3, "deletions": 0, "evictions": 0, "forgotten": 0}
    assert [memory.size() for memory in shared.memories] == [3]
    assert [memory.size() for memory in own.memories] == [1, 2]
    queries, rows = torch.eye(M)[None, 1:2].expand(2, 1, M), torch.tensor([1, 0])
    origin = Entries(documents=torch.full((2, 1), 7), positions=torch.zeros(2, 1, dtype=torch.int64))
    ids, distances = own.search(queries, rows, origin, k=2)
    assert ids.shape == distances.shape == (2, 1, 2)
    assert own.tokens(ids, rows)[:, 0].tolist() == [[1, 2], [0, -1]]
    assert torch.equal(own.vectors(ids, rows)[1, 0, 1], torch.zeros(M))
    with pytest.raises(InputError, match="row 2 has no memory: streams is 2"):
        own.write(update([2]), training=False)
    with pytest.raises(InputError, match="streams is 0"):
        bank_with(streams=0)


def test_different_entries_are_a_share_of_what_could_be_found():
    shared, own, rows = bank_with("shared"), bank_with(), torch.tensor([0, 1])
    assert float(shared.distinct(torch.full((2, 3, 2), -1), rows)) == 1  # there is nothing
    for bank in (shared, own):
        bank.write(update([0, 1, 1, 1]), training=False)
    same = torch.zeros(2, 3, 2, dtype=torch.int64)
    assert float(shared.distinct(same, rows)) == 1 / 4  # of 4 entries, by 12 results
    assert float(own.distinct(same, rows)) == 2 / 4  # one of 1, one of 3
    assert float(shared.distinct(torch.tensor([[[3, -1]], [[2, -1]]]), rows)) == 1  # of 2 results


def test_an_empty_bank_finds_nothing_for_any_row():
    bank, rows = bank_with(), torch.tensor([0, 1, 2])
    origin = Entries(documents=torch.zeros(3, 1, dtype=torch.int64), positions=torch.zeros(3, 1, dtype=torch.int64))
    ids, distances = bank.search(torch.ones(3, 1, M), rows, origin, k=2)
    assert (ids == -1).all()
    assert distances.isinf().all()
    assert bank.vectors(ids, rows).shape == (3, 1, 2, M)
    assert (bank.tokens(ids, rows) == -1).all()


def test_distances_are_float32_whatever_the_default():
    bank, rows, origin = bank_with("shared"), torch.tensor([0]), Entries()
    torch.set_default_dtype(torch.float64)
    try:
        empty = bank.search(torch.ones(1, 1, M), rows, origin)[1]
        bank.write(update([0]), training=False)
        found = bank.search(torch.ones(1, 1, M), rows, origin)[1]
    finally:
        torch.set_default_dtype(torch.float32)
    assert empty.dtype == found.dtype == torch.float32


def test_it_removes_counts_uses_writes_and_evicts_in_this_order():
    bank = bank_with("shared", eviction="least_recently_used")
    bank.write(update([0] * 5), training=True)
    removed, used = torch.tensor([[0, 1], [0, 1], [0, 99]]), torch.tensor([[0, 0], [0, 0]])
    counts = bank.write(update([0] * 2, removed=removed, used=used), training=False)
    assert counts == {"writes": 2, "deletions": 1, "evictions": 1, "forgotten": 0}
    assert bank.shared.ids().tolist() == [0, 3, 4, 5, 6]  # 1 removed, 0 used, 2 evicted
    assert bank.shared.payload(torch.tensor([0, 3])).uses.tolist() == [1, 0]


def test_only_training_ages_and_forgets():
    bank = bank_with("shared", memory_size=4000, forgetfulness_factor=0.5)
    assert bank.write(update([0] * 4000), training=False)["forgotten"] == 0
    assert int(bank.shared.clock) == 0
    assert 1800 < bank.write(update([]), training=True)["forgotten"] < 2200
    assert int(bank.shared.clock) == 1


def test_an_evaluation_has_a_copy_that_is_forgotten():
    bank = bank_with("shared")
    bank.write(update([0]), training=False)
    names = list(bank.state_dict())
    bank.begin_evaluation()
    bank.write(update([0, 0], removed=torch.tensor([[0, 0]])), training=False)
    assert bank.size() == 2
    assert bank.memories[0].ids().tolist() == [0]
    assert list(bank.state_dict()) == names
    bank.end_evaluation()
    assert bank.shared.ids().tolist() == [0]


def test_a_document_s_memory_is_cleared_by_the_next_document():
    bank = bank_with("document")
    bank.write(update([0, 0, 1], document=1), training=False)
    bank.write(update([0], document=2), training=False)
    assert bank.memories[0].documents[: bank.memories[0].size()].tolist() == [2]
    assert bank.memories[1].size() == 1
    rows, late = torch.tensor([0, 1]), torch.full((2, 1), 9)
    ids, _ = bank.search(torch.ones(2, 1, M), rows, Entries(documents=torch.full((2, 1), 2), positions=late), k=1)
    assert (ids >= 0).flatten().tolist() == [True, False]  # row 1 holds another document


def test_what_a_document_has_written_takes_no_place_from_the_next():
    """However much it was worth."""
    bank = bank_with("document", eviction="lowest_score", fading=0.0)
    before = update([0] * 5, document=1)
    bank.write(replace(before, entries=replace(before.entries, strengths=torch.full((5,), 9.0))), training=False)
    new = update([0] * 3, document=2)
    bank.write(replace(new, entries=replace(new.entries, strengths=torch.ones(3))), training=False)
    known = bank.memories[0].payload(bank.memories[0].ids())
    assert known.documents.tolist() == [2, 2, 2]


def test_effects_are_joined_in_order():
    both = joined([update([0, 1]), update([1], removed=torch.tensor([[1, 3]]))])
    assert both.rows.tolist() == [0, 1, 1]
    assert both.removed.tolist() == [[1, 3]]
    assert both.used.shape == (0, 2)
