"""How the tests read a log and a chart."""

from __future__ import annotations

from typing import Any

from lightning_app.reports.figures import Chart
from tests.reports.conftest import Log


def trace(chart: Chart, name: str) -> dict[str, Any]:
    (found,) = [one for one in chart.data if one["name"] == name]
    return found


def of(log: Log, event: str) -> Log:
    found = [r for r in log if r.get("event") == event]
    assert found, f"the log has no {event}"
    return found


def logged(log: Log, name: str) -> tuple[list[int], list[float]]:
    found = [r for r in log if "event" not in r and name in r]
    assert len(found) > 10
    return [r["step"] for r in found], [r[name] for r in found]


def without(log: Log, *names: str) -> Log:
    """The log as it would be if these events and fields had never been written."""
    return [{k: v for k, v in r.items() if k not in names} for r in log if r.get("event") not in names]
