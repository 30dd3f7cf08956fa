"""Slots and columns of a memory on small literal cases: places, evictions, moves; rows written, read, cleared."""

import numpy as np
import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory import slots as columns
from lightning_app.memory.options import MemoryOptions
from lightning_app.memory.slots import Entries, Slots

SLOT_IDS = torch.tensor([7, 2, 9, 4, -1, -1])  # four entries, in no order


def contents(slots: Slots) -> list[list[int]]:
    return [slots.ids.tolist(), slots.slots.tolist()]


def test_ids_are_read_in_ascending_order():
    assert contents(Slots.read(SLOT_IDS)) == [[2, 4, 7, 9], [1, 3, 0, 2]]
    assert len(Slots.read(torch.full((3,), -1))) == 0


@pytest.mark.parametrize("slot_ids", [[0, -1, 1], [3, 3, -1]])
def test_gaps_and_equal_ids_are_damage(slot_ids):
    with pytest.raises(InputError, match="slot_ids are damaged: gaps or equal ids in 2 entries"):
        Slots.read(torch.tensor(slot_ids))


def test_slots_of_ids():
    slots = Slots.read(SLOT_IDS)
    assert slots.of(torch.tensor([[9, -1], [2, 2]])).tolist() == [2, -1, 1, 1]
    assert slots.places(torch.tensor([9, 2])).tolist() == [3, 0]
    assert Slots.read(torch.tensor([-1])).find(np.array([0]))[1].tolist() == [False]


def test_the_least_worth_is_evicted_and_of_equals_the_smallest_id():
    slots = Slots.read(SLOT_IDS)
    worth = np.array([1, 3, 1, 1, 0, 0])  # of the ids 7, 2, 9, 4 and of free slots, which do not count
    assert slots.ids[slots.victims(2, worth)].tolist() == [4, 7]
    assert slots.ids[slots.victims(2)].tolist() == [2, 4]
    assert slots.victims(0, worth).tolist() == []
    assert slots.victims(4, worth).tolist() == [0, 1, 2, 3]


def test_new_entries_take_free_slots_first():
    slots = Slots.read(SLOT_IDS)
    filled, targets = slots.filled(np.array([10, 11, 12]), gone=np.array([2]))  # the id 7
    assert targets.tolist() == [4, 5, 0]
    assert contents(filled) == [[2, 4, 9, 10, 11, 12], [1, 3, 2, 4, 5, 0]]
    assert contents(slots) == [[2, 4, 7, 9], [1, 3, 0, 2]]


def test_the_last_slots_move_into_the_gaps():
    slots = Slots.read(SLOT_IDS)
    left, sources, gaps = slots.emptied(np.array([0, 2]))  # the ids 2 and 7, in the slots 1 and 0
    assert gaps.tolist() == [0, 1]
    moved = SLOT_IDS.clone()
    moved[gaps], moved[2:] = SLOT_IDS[sources], -1
    assert contents(Slots.read(moved)) == contents(left)
    assert left.ids.tolist() == [4, 9]
    assert contents(slots.emptied(np.arange(4))[0]) == [[], []]


# Columns

OPTIONS = MemoryOptions(4, 2, span_length=3, dtype="float16")


def buffers() -> dict[str, torch.Tensor]:
    return {**columns.blank_columns(OPTIONS), "clock": torch.tensor(5)}


def written() -> dict[str, torch.Tensor]:
    found = buffers()
    payload = columns.payload_columns(
        Entries(tokens=torch.tensor([8, 9])), count=2, span_length=3, device=torch.device("cpu")
    )
    assert payload.keys() == {"tokens"}
    ids, clock = torch.tensor([6, 7]), torch.tensor(3)
    rows = columns.new_rows(torch.ones(2, 2), payload, ids=ids, clock=clock, span_length=3)
    columns.write_rows(found, torch.tensor([2, 0]), rows)
    return found


def test_blank_columns_have_the_types_and_shapes_of_checkpoints():
    found = columns.blank_columns(OPTIONS)
    assert {name: (tuple(x.shape), x.dtype) for name, x in found.items() if name in ("vectors", "spans", "uses")} == {
        "vectors": ((4, 2), torch.float16),
        "spans": ((4, 3), torch.int32),
        "uses": ((4,), torch.int64),
    }
    assert found["slot_ids"].tolist() == [-1] * 4
    in_file = MemoryOptions(4, 2, path="file")
    assert columns.blank_columns(in_file).keys() == columns.BLANK.keys() - {"vectors"}


def test_what_is_written_is_read_and_what_was_not_given_is_unknown():
    found = columns.read_entries(written(), torch.tensor([[0, -1], [2, 1]]))
    assert found.tokens.tolist() == [[9, -1], [8, -1]]
    assert found.documents.tolist() == [[-1, -1], [-1, -1]]
    assert found.spans.tolist()[0] == [[-1] * 3] * 2
    assert found.ages.tolist() == [[2, 0], [2, 5]]
    assert found.strengths.tolist() == [[1, 0], [1, 0]]


def test_a_cleared_slot_is_as_a_new_one():
    found = written()
    columns.clear_rows(found, slice(0, 4))
    assert all(torch.equal(x, found[name]) for name, x in buffers().items())


def test_rows_move_with_all_their_columns():
    found = written()
    columns.write_rows(found, torch.tensor([1]), columns.rows_of(found, torch.tensor([2])))
    assert columns.BLANK.keys() == found.keys() - {"clock"}
    assert all(torch.equal(found[name][1], found[name][2]) for name in columns.BLANK)


def test_vectors_are_checked_before_they_are_converted():
    like = torch.zeros(4, 2, dtype=torch.float16)
    assert columns.stored_vectors(torch.ones(1, 2), like).dtype == torch.float16
    for vectors, message in (
        (torch.ones(1, 3), "memory_dim is 2"),
        (torch.ones(2), r"give \(N, 2\)"),
        (torch.full((1, 2), 1e5), "does not fit float16"),
        (torch.tensor([[torch.nan, 1.0]]), "1 of 2 values"),
    ):
        with pytest.raises(InputError, match=message):
            columns.stored_vectors(vectors, like)
    assert columns.all_finite(torch.full((3,), 3e38))  # though their sum is not
