"""Events: what is written is what is read, and reading forgives."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from lightning_app.plasticity.report.events import (
    Analysis,
    Evaluation,
    GroupRate,
    LearningRates,
    Pruning,
    TextSample,
    TextSamples,
)
from lightning_app.reports import events
from lightning_app.reports.events import (
    Closed,
    Cost,
    Data,
    Failed,
    Resumed,
    SplitCounts,
    Started,
    end_of,
    kinds,
    parsed,
)
from lightning_app.reports.record import HEAD, Event, Numbers, Other
from lightning_app.reports.series import best_validation

PACKAGE = Path(events.__file__).parent.parent
COUNTS = SplitCounts(split="val", documents=2, words=9, bytes=50, tokens=12, windows=3, truncated=0, text="ab")
NAMES = {  # as logs of all versions have them: none may ever change
    *("data", "started", "resumed", "passages", "ended", "failed", "interrupted", "trained", "closed"),
    "measured",
    *("plasticity_started", "phase_transition", "stabilised", "analysis", "pruning_event", "regrowth_event"),
    *("rollback", "proof", "evaluation", "cost", "text_samples", "learning_rates", "controller_update"),
}


def test_the_names_in_logs_stay():
    assert set(kinds()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_event_is_written_by_somebody(name: str):
    """What is read and never written would be an empty promise on the page."""
    kind = kinds()[name].__name__
    writers = [path for path in PACKAGE.rglob("*.py") if path.parent.name not in ("reports", "report")]
    called = f"{kind}(" if kind != "Resumed" else ".resumed("
    assert any(called in path.read_text(encoding="utf-8") for path in writers)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_is_written_is_read_again(name: str):
    kind = kinds()[name]
    hints = get_type_hints(kind)
    own = [one.name for one in fields(kind) if one.name not in {inherited.name for inherited in fields(Event)}]
    values: dict[str, Any] = {field: example(str(hints[field])) for field in own}
    whole = kind(step=7, epoch=1, **values)
    line = json.loads(json.dumps(whole.to_json()))
    assert list(line) == ["event", "step", "epoch", *own]
    assert parsed(line) == whole
    bare = parsed({"event": name, "step": 7})
    assert type(bare) is kind
    assert all(getattr(bare, field) in (None, False) for field in own)
    assert bare.content() == {
        one.name: None for one in fields(kind) if one.name in own and one.default is MISSING
    }  # of the others nothing was logged


def example(hint: str) -> Any:
    """A value of a type."""
    first = hint.removeprefix("typing.").split(" | ")[0]
    for start, value in {
        "list[list[": [[1, 0], [1, 1]],
        f"list[{SplitCounts.__module__}.SplitCounts": [COUNTS],
        f"list[{GroupRate.__module__}.TextSample": [TextSample(prompt="a", text="ab")],
        f"list[{GroupRate.__module__}.GroupRate": [GroupRate(name="x", lr=0.5, factor=1.0)],
        "list[str": ["x"],
        "list[": [1, 2],
        "dict[str, list": {"heads": [1, 2]},
        "dict": {"x": True},
        "int": 3,
        "<class 'str": "x",
        "str": "x",
        "<class 'bool": True,
        "bool": True,
        "float": 0.5,
    }.items():
        if first.startswith(start):
            return value
    raise AssertionError(hint)


@pytest.mark.parametrize(
    "wrong", [{"alive": [[1, "x"]]}, {"entropy": [[float("nan")]]}, {"cycle": "1"}, {"cycle": True}, {"strategy": 5}]
)
def test_a_field_of_another_type_counts_as_not_logged(wrong: dict[str, Any]):
    (name,) = wrong
    found = parsed({"event": "analysis", "step": 1, "importance": [[0.5, None]], **wrong})
    assert isinstance(found, Analysis)
    assert getattr(found, name) is None
    assert found.importance == [[0.5, None]]


def test_rows_of_an_event_are_typed_and_reading_them_forgives():
    """Older logs lack fields, and a later version has more."""
    row = {"split": "val", "documents": "2", "words": 9, "bytes": 3.5, "late": 1}
    found = parsed({"event": "data", "splits": [row, {}]})
    assert isinstance(found, Data)
    bare = SplitCounts(split=None, documents=None, words=None, bytes=None, tokens=None)
    assert found.splits == [replace(bare, split="val", words=9, more={"late": 1}), bare]
    assert found.to_json()["splits"][0] == {"late": 1, **replace(bare, split="val", words=9).content()}
    rates = parsed({"event": "learning_rates", "groups": [{"name": "block 0", "lr": float("nan"), "factor": 2}]})
    assert rates == LearningRates(groups=[GroupRate(name="block 0", lr=None, factor=2)])
    assert parsed({"event": "text_samples", "texts": ["no row"]}) == TextSamples(stage=None, texts=None)


def test_no_event_holds_bare_mappings_in_a_list():
    hints = {(name, field): str(hint) for name, kind in kinds().items() for field, hint in get_type_hints(kind).items()}
    assert len(hints) > 50
    assert [place for place, hint in hints.items() if "list[dict" in hint] == []


def test_an_unknown_event_and_an_unknown_field_stay_readable():
    line = {"event": "heavy_weights", "step": 3, "epoch": 0, "norm": 12.5}
    assert parsed(line) == Other(step=3, epoch=0, called="heavy_weights", more={"norm": 12.5})
    assert parsed(line).to_json() == line  # type: ignore[union-attr]
    later = {"event": "failed", "step": 3, "epoch": None, "host": "a", "error": "E", "message": "m"}
    assert parsed(later) == Failed(step=3, more={"host": "a"}, error="E", message="m")
    assert parsed(later).to_json() == later  # type: ignore[union-attr]


def test_an_event_of_ones_own_is_written_with_its_fields():
    @dataclass(frozen=True, kw_only=True)
    class HeavyWeights(Event):
        NAME = "heavy_weights"
        norm: float
        limit: float | None = None

    assert HeavyWeights(step=1, norm=2.0).to_json() == {"event": "heavy_weights", "step": 1, "epoch": None, "norm": 2.0}


def test_numbers_of_a_command_are_no_part_of_the_curves():
    test = parsed({"event": "test", "test/ce": 3.0, "val/ce": 1.0})
    step = parsed({"step": 5, "val/ce": 2.0, "val/f1": None})
    assert (test, step) == (
        Numbers(values={"test/ce": 3.0, "val/ce": 1.0}, of="test"),
        Numbers(step=5, values={"val/ce": 2.0, "val/f1": None}),
    )
    assert best_validation([test, step]) == step


def test_what_was_reached_before_the_model_changed_is_not_its_best():
    before, after = (Numbers(step=step, values={"val/ce": ce}) for step, ce in ((1, 1.0), (9, 3.0)))
    pruned = Pruning(step=5, cycle=1, target="heads", reason="")
    assert best_validation([before, pruned, after]) == after
    evaluated = Evaluation(step=5, cycle=1, stage="pruned", ce=2.0, ppl=None, sparsity=None)
    assert best_validation([before, evaluated, after]) == before


def test_a_line_of_an_event_is_as_it_was_before_events_had_classes():
    """Lines of logs that were written by the commit before."""
    started = Started(model="ArticleGPT", parameters=5, world_size=1, precision="32-true", flops_per_token=7)
    assert [
        json.dumps(event.to_json())
        for event in (
            Data(splits=[]),
            Data(splits=[COUNTS]),
            started,
            replace(started, flops_per_token=None),
            started.resumed(lines=12),
            Closed(more={"val/ce": 2.5}, lzma_bpb=None, verbatim=0.25),
            Pruning(cycle=1, target="neurons", reason="r", removed=[1], widths=[2]),
            Cost(
                cycle=0, stage="baseline", parameters=1, bytes=4, flops_per_token=2, latency_ms=1.5, latency_spread=[1]
            ),
        )
    ] == [
        '{"event": "data", "step": 0, "epoch": null, "splits": []}',
        '{"event": "data", "step": 0, "epoch": null, "splits": [{"split": "val", "documents": 2, "words": 9, "bytes": '
        '50, "tokens": 12, "windows": 3, "truncated": 0, "text": "ab"}]}',
        '{"event": "started", "step": 0, "epoch": null, "model": "ArticleGPT", "parameters": 5, "world_size": 1, '
        '"precision": "32-true", "flops_per_token": 7}',
        '{"event": "started", "step": 0, "epoch": null, "model": "ArticleGPT", "parameters": 5, "world_size": 1, '
        '"precision": "32-true"}',
        '{"event": "resumed", "step": 0, "epoch": null, "model": "ArticleGPT", "parameters": 5, "world_size": 1, '
        '"precision": "32-true", "flops_per_token": 7, "lines": 12}',
        '{"event": "closed", "step": 0, "epoch": null, "val/ce": 2.5, "lzma_bpb": null, "verbatim": 0.25}',
        '{"event": "pruning_event", "step": 0, "epoch": null, "cycle": 1, "target": "neurons", "reason": "r", '
        '"removed": [1], "widths": [2]}',
        '{"event": "cost", "step": 0, "epoch": null, "cycle": 0, "stage": "baseline", "parameters": 1, "bytes": 4, '
        '"flops_per_token": 2, "latency_ms": 1.5, "latency_spread": [1]}',
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"event": "started"}, {"event": "ended"}], "ended"),
        ([{"event": "started"}, {"event": "failed", "error": "E"}], "failed: E"),
        ([{"event": "failed"}], "failed: reason not logged"),
        ([{"event": "started"}, {"event": "interrupted", "signal": "SIGINT"}], "interrupted by SIGINT"),
        ([{"event": "ended"}, {"event": "resumed", "step": 5}], None),
        ([], None),
    ],
)
def test_how_a_run_ended(lines: list[dict[str, Any]], said: str | None):
    assert end_of([parsed(line) for line in lines]) == said


def test_a_run_that_goes_on_is_one_that_started():
    """So who asks for the start of a run gets either."""
    assert issubclass(Resumed, Started)
    assert set(HEAD) == {"time", "event", "step", "epoch"}
