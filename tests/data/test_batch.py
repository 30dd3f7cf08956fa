from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_app.data.batch import GENERATED, IGNORE, Batch, FlatBatches, StreamBatches

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
NAMES = ["input_ids", "targets", "attention_mask", "document_ids", "document_keys", "positions"]


def plain(batch: Batch) -> dict[str, list[list[int]]]:
    return {name: column.tolist() for name, column in vars(batch).items()}


def test_tokens_alone_are_a_document_in_each_row():
    assert plain(Batch.of(IDS)) == {
        "input_ids": [[5, 6, 7], [9, 10, 11]],
        "targets": [[6, 7, 8], [10, 11, 12]],
        "attention_mask": [[True] * 3] * 2,
        "document_ids": [[0] * 3, [1] * 3],
        "document_keys": [[GENERATED] * 3] * 2,
        "positions": [[0, 1, 2]] * 2,
    }
    whole = Batch.of_texts(IDS)
    assert whole.input_ids.tolist() == IDS.tolist()
    assert whole.targets.tolist() == [[6, 7, 8, IGNORE], [10, 11, 12, IGNORE]]


def test_padding_looks_alike_in_a_new_batch_and_in_one_that_is_padded():
    real = torch.tensor([[True, True, False], [True, True, True]])
    made = Batch.of(IDS, real=real, scored=real & (torch.arange(3) > 0), eot=3)
    assert made.input_ids.tolist() == [[5, 6, 3], [9, 10, 11]]
    assert made.targets.tolist() == [[IGNORE, 7, IGNORE], [IGNORE, 11, 12]]
    padded = Batch.of(IDS[:, :3]).padded(3)
    assert [name for name in NAMES if getattr(padded, name).shape != (2, 3)] == []
    others = [plain(batch) for batch in (made, padded)]
    for name in NAMES[2:]:
        assert others[0][name][0] == others[1][name][0]
    assert padded.targets.tolist() == [[6, 7, IGNORE], [10, 11, IGNORE]]
    assert padded.input_ids.tolist() == [[5, 6, 0], [9, 10, 0]]
    assert plain(padded.padded(3)) == plain(padded)


def test_it_cannot_be_changed_and_has_what_a_loader_and_lightning_want(monkeypatch: pytest.MonkeyPatch):
    batch = Batch.of(IDS)
    assert [field.name for field in fields(batch)] == NAMES
    with pytest.raises(FrozenInstanceError):
        batch.targets = IDS  # type: ignore[misc]
    assert extract_batch_size(batch) == 2
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {column.device.type for column in vars(moved).values()} == {"meta"}
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda column: column + 1)
    pinned = pin_memory(batch)  # what a DataLoader does with it
    assert isinstance(pinned, Batch)
    assert pinned.input_ids.tolist() == [[6, 7, 8], [10, 11, 12]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("even", [False, True])
def test_rows_of_the_first_batches_are_those_of_all_ranks(world_size: int, drop_last: bool, even: bool):
    looked_at = 0
    for size in range(5, 41):
        for made in (lambda n, **share: FlatBatches(range(n), **share), StreamBatches):
            share = {"batch_size": 4, "world_size": world_size, "drop_last": drop_last, "even": even}
            ranks = [made(size, rank=rank, **share) for rank in range(world_size)]
            for batches in range(max(map(len, ranks)) + 1):
                counted = sum(len(one[t]) for one in ranks for t in range(min(batches, len(one))))
                assert ranks[0].rows(batches) == counted, (size, made, batches)
                looked_at += batches > 0
    assert looked_at > 100
