from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lightning_app.errors import InputError
from lightning_app.training.checks import (
    check_sizes,
    say_what_is_frozen,
    warn_if_it_can_only_memorise,
)


def test_sizes_that_the_data_contradicts_are_refused_with_both_numbers():
    data: Any = SimpleNamespace(vocab_size=257, block_size=16)
    check_sizes(data, vocab_size=257, longest=16)
    check_sizes(data, vocab_size=257, longest=None)
    with pytest.raises(InputError, match=r"data\.vocab_size is 257, but the backbone has 300 ids"):
        check_sizes(data, vocab_size=300, longest=16)
    with pytest.raises(InputError, match=r"data\.block_size is 16, but the backbone holds at most 15 positions"):
        check_sizes(data, vocab_size=257, longest=15)


def test_what_is_frozen_is_said(caplog: pytest.LogCaptureFixture):
    model = nn.Linear(3, 1)
    say_what_is_frozen(list(model.parameters()))
    assert caplog.text == ""
    model.weight.requires_grad_(False)
    say_what_is_frozen(list(model.parameters()))
    assert "1 of 4 parameters are trained (25.00%)" in caplog.text


def text(tokens: int, windows: int, *, streamed: bool = False) -> Any:
    return SimpleNamespace(
        streamed=lambda split: streamed,
        tokens=lambda split: SimpleNamespace(n_tokens=tokens),
        dataset=lambda split: range(windows),
        block_size=10,
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (text(20, 2), False),  # 1,000 parameters: as many as 50 for each token
        (text(19, 2), True),
        (text(20, 1), True),  # a part of the text
        (text(1, 1, streamed=True), False),
    ],
)
def test_a_model_much_larger_than_its_text_is_told(data: Any, told: bool, recwarn: pytest.WarningsRecorder):
    warn_if_it_can_only_memorise(nn.Linear(100, 10, bias=False), data)
    assert [str(w.message).split(" for ")[0] for w in recwarn] == ["1,000 parameters"] * told
