"""What state a memory takes, and what types keep when it is moved."""

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.options import MemoryOptions
from lightning_app.memory.persistence import check_state, keeping_types
from lightning_app.memory.slots import blank_columns


def columns(size: int, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: x for name, x in blank_columns(MemoryOptions(size, 2)).items()}


def test_state_of_another_size_is_refused():
    check_state(columns(3, "bank."), columns(3), "bank.")
    check_state({}, columns(3))  # nothing there, nothing wrong
    with pytest.raises(InputError, match=r"bank.vectors is \(4, 2\) in the checkpoint and \(3, 2\) here"):
        check_state(columns(4, "bank."), columns(3), "bank.")


def test_state_whose_ids_contradict_each_other_is_refused():
    state = columns(3)
    state["slot_ids"] = torch.tensor([5, 5, -1])
    with pytest.raises(InputError, match="slot_ids are damaged"):
        check_state(state, columns(3))


def test_casts_leave_types_and_moves_go_through():
    assert keeping_types(lambda x: x.half())(torch.ones(2)).dtype == torch.float32
    assert keeping_types(lambda x: x.to("meta"))(torch.ones(2)).device.type == "meta"
