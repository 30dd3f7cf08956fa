"""Slots: places, evictions and moves, on small literal cases."""

import numpy as np
import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.slots import Slots

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
    fill = slots.filled(np.array([10, 11, 12]), gone=np.array([2]))  # the id 7
    assert fill.targets.tolist() == [4, 5, 0]
    assert contents(fill.slots) == [[2, 4, 9, 10, 11, 12], [1, 3, 2, 4, 5, 0]]
    assert contents(slots) == [[2, 4, 7, 9], [1, 3, 0, 2]]


def test_the_last_slots_move_into_the_gaps():
    slots = Slots.read(SLOT_IDS)
    removal = slots.emptied(np.array([0, 2]))  # the ids 2 and 7, in the slots 1 and 0
    assert removal.gaps.tolist() == [0, 1]
    moved = SLOT_IDS.clone()
    moved[removal.gaps], moved[2:] = SLOT_IDS[removal.sources], -1
    assert contents(Slots.read(moved)) == contents(removal.slots)
    assert removal.slots.ids.tolist() == [4, 9]
    assert contents(slots.emptied(np.arange(4)).slots) == [[], []]
