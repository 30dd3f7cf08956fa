"""A small random model of each family, whose every weight shows in its logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from lightning_app.models.backbone import Backbone
from tests.backbones import made, some_ids

Build = Callable[[str], Backbone]


@pytest.fixture
def build() -> Build:
    """A fresh model of a family by name, in eval mode."""
    return made


@pytest.fixture
def ids() -> Tensor:
    """(3, 16)"""
    return some_ids()
