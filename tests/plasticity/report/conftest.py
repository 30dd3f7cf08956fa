"""The log of a run with all that can happen in one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.reports.conftest import Log, simulated


@pytest.fixture
def simulate() -> Callable[..., Log]:
    return simulated


@pytest.fixture
def log() -> Log:
    return simulated(regrowth=True, rollback=True, controller=True)
