"""A line of a run's log as a typed object: numbers of a step, or an event.

Reading forgives: a field that a line lacks, or that holds something else than its type says, is as if it had not been
logged (None, or its default). So logs of earlier versions stay readable, and no reader asks what a value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache, reduce
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

HEAD = ("time", "event", "step", "epoch")  # what each line may begin with


@dataclass(frozen=True, kw_only=True)
class Line:
    """What all lines have.

    Attributes:
        time: seconds since 1970.
        step: optimizer steps done.
        epoch: counted from 0.
    """

    time: float | None = None
    step: int = 0
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers(Line):
    """What was logged at a step.

    Attributes:
        values: by name, such as "train/ce"; None where a number was not finite.
        of: the command that measured it: "fit", or "validate" or "test".
    """

    values: Mapping[str, float | None] = field(default_factory=dict)
    of: str = "fit"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Numbers:
        values = {name: finite(value) for name, value in record.items() if name not in HEAD}
        return cls(**_head(record), values=values, of=record.get("event", "fit"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """An object of JSON: an event, or one of several that an event has in a list. A subclass has the fields in order.

    A field with a default stands in the log only where it has another value; one without always does.

    Attributes:
        more: fields that the class does not have, such as those of a later version.
    """

    more: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """The fields in plain types."""
        own = {one.name: getattr(self, one.name) for one in _own(type(self))}
        kept = {one.name for one in _own(type(self)) if one.default is MISSING or own[one.name] != one.default}
        return {**self.more, **{name: _plain(value) for name, value in own.items() if name in kept}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        own = {one.name: one for one in _own(cls)}
        more = {name: value for name, value in record.items() if name not in own}
        return cls(more=more, **{name: _read(cls, one, record) for name, one in own.items()})


@dataclass(frozen=True, kw_only=True)
class Event(Row, Line):
    """What happened. A subclass has a name of its own in the log.

    Attributes:
        NAME: in the log; it stays, whatever the class is called.
        changes_model: what was measured before is not a measure of the model that is left.
        is_of_the_whole: it says what the run is or how it ended, and stands in the page's table of that.
    """

    NAME: ClassVar[str] = ""
    changes_model: ClassVar[bool] = False
    is_of_the_whole: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.NAME

    def to_json(self) -> dict[str, Any]:
        """The line, but for the time, which the log adds."""
        return {"event": self.name, "step": self.step, "epoch": self.epoch, **self.content()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        content = {name: value for name, value in record.items() if name not in HEAD}
        return replace(super().from_json(content), **_head(record))


@dataclass(frozen=True, kw_only=True)
class Other(Event):
    """An event that this version does not know: that of a callback of one's own, or of a later version."""

    called: str = ""

    @property
    def name(self) -> str:
        return self.called

    def content(self) -> dict[str, Any]:
        return dict(self.more)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        more = {name: value for name, value in record.items() if name not in HEAD}
        return cls(**_head(record), more=more, called=record["event"])


Record = Numbers | Event
_INHERITED = {base: {one.name for one in fields(base)} for base in (Row, Event)}


def finite(value: Any) -> float | int | None:
    """The number, or None for whatever is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None


def _head(record: Mapping[str, Any]) -> dict[str, Any]:
    epoch = finite(record.get("epoch"))
    return {
        "time": finite(record.get("time")),
        "step": int(finite(record.get("step")) or 0),
        "epoch": None if epoch is None else int(epoch),
    }


def _own(kind: type[Row]) -> list[Field[Any]]:
    """The fields that a subclass adds."""
    inherited = _INHERITED[Event if issubclass(kind, Event) else Row]
    return [one for one in fields(kind) if one.name not in inherited]


def _plain(value: Any) -> Any:
    return [one.content() if isinstance(one, Row) else one for one in value] if isinstance(value, list) else value


def _read(kind: type[Row], one: Field[Any], record: Mapping[str, Any]) -> Any:
    wanted = _types(kind)[one.name]
    if one.name not in record or not _test(wanted)(record[one.name]):
        return None if one.default is MISSING else one.default
    value, row = record[one.name], _row_of(wanted)
    return value if row is None or value is None else [row.from_json(item) for item in value]


_known_types: dict[Any, dict[str, Any]] = {}  # to look them up takes longer than to read a line


def _types(kind: type[Row]) -> dict[str, Any]:
    if kind not in _known_types:
        _known_types[kind] = get_type_hints(kind)
    return _known_types[kind]


@cache
def _row_of(kind: Any) -> type[Row] | None:
    """The class of the rows in a list of them; None for all other types."""
    if isinstance(kind, type) and issubclass(kind, Row):
        return kind
    return next((row for inner in get_args(kind) if (row := _row_of(inner)) is not None), None)


Test = Callable[[Any], bool]


@cache
def _test(kind: Any) -> Test:
    """Whether a value of JSON is of a type: str, bool, int, float (finite), None, list, dict, a `Row`, or one of
    several."""
    origin, inner = get_origin(kind), [_test(one) for one in get_args(kind)]
    if origin in (Union, UnionType):
        return reduce(_either, inner)
    if origin is list:
        return lambda value: type(value) is list and all(map(inner[0], value))
    if origin is dict:
        return lambda value: type(value) is dict and all(map(inner[1], value.values()))
    if origin is None and isinstance(kind, type) and issubclass(kind, Row):
        return lambda value: type(value) is dict
    simple: dict[Any, Test] = {
        float: lambda value: (type(value) is float and math.isfinite(value)) or type(value) is int,
        NoneType: lambda value: value is None,
        Any: lambda value: True,
    }
    return simple.get(kind) or (lambda value: type(value) is kind)


def _either(one: Test, other: Test) -> Test:
    return lambda value: one(value) or other(value)
