"""What a checkpoint knows of units, in plain types."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lightning_app.errors import InputError
from lightning_app.plasticity.layout import Layer, Slice, check_shape, kept_from, kept_state, layout_of, mask_of


def test_a_layout_says_what_is_there_and_what_is_masked():
    layers = [Layer(nn.Linear(1, 1), [], [], 3) for _ in range(2)]
    layers[1].present = [0, 2]
    layout = layout_of(layers, torch.tensor([[True, False, True], [True, False, True]]))
    assert json.loads(json.dumps(layout)) == {"shape": [2, 3], "present": [[0, 1, 2], [0, 2]], "masked": [[1], []]}
    assert mask_of(layout).tolist() == [[True, False, True], [True, True, True]]
    check_shape(layout, (2, 3), "heads")
    with pytest.raises(InputError, match="has 2 layers of 3 heads, this one 2 of 4"):
        check_shape(layout, (2, 4), "heads")


def test_what_was_cut_out_comes_back():
    kept = {(1, 2): [Slice(torch.ones(2), {"exp_avg": torch.zeros(2)})]}
    state = kept_state(kept)
    assert state[0]["layer"] == 1
    assert state[0]["unit"] == 2
    assert kept_from(state) == kept
