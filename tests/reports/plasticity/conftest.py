"""The log of a run with all that can happen in one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.reports.conftest import Log


@pytest.fixture
def log(simulate: Callable[..., Log]) -> Log:
    return simulate(regrowth=True, rollback=True, controller=True)
