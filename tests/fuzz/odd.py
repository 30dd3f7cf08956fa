"""Odd values, and what is done with them to a tree of mappings and lists."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 17, 0.5, -0.5, 1.5, 1e-12, 1e300, math.nan, math.inf, -math.inf),
    *("", " ", "x", "1", "-1", "null", "true", "nan", "é\u2028", "\ud800", "\0", "a\nb", "x" * 300, "${x}", "{{ x }}"),
    *([], {}, [[]], [None], [1, 2], ["x"], [""], [-1], {"a": 1}, {"": None}, {"class_path": "x"}, {"class_path": 1}),
    *({"class_path": "torch.nn.Linear"}, {"init_args": {"x": 1}}, [{"class_path": "EarlyStopping"}]),
]


def places(tree: Any, *, closed: Sequence[Any] = ()) -> Iterator[tuple[Any, Any]]:
    """(mapping or list, key) of everything in a tree, but of what stands below a `closed` key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        if key not in closed:
            yield from places(value, closed=closed)


def spoil(tree: dict[str, Any], draw: random.Random, odd: list[Any] = ODD) -> str:
    """Change one thing of a tree and say what."""
    where = list(places(tree))
    if not where:
        tree["x"] = 1
        return "x added"
    parent, key = draw.choice(where)
    value = parent[key]
    change = draw.choice(("replaced", "replaced", "near", "near", "near", "key", "key", "removed", "nested", "moved"))
    if change == "replaced":
        parent[key] = draw.choice(odd)
    elif change == "near":
        parent[key] = near(value, draw)
    elif change == "key" and isinstance(parent, dict):
        parent[typo(str(key), draw)] = parent.pop(key)
    elif change == "moved":
        target, _ = draw.choice(where)
        target.update({str(key): value}) if isinstance(target, dict) else target.append(value)
        _drop(parent, key, value)
        if _holds(value, target):
            parent[key] = None  # a loop is no YAML and no JSON
    elif change == "nested":
        parent[key] = draw.choice(([value], {key: value}, {"init_args": value}, [value, value], deep(value, 40)))
    else:
        del parent[key]
    return f"{key} {change}"


def _drop(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, dict) and parent.get(key) is value:
        del parent[key]


def _holds(tree: Any, one: Any) -> bool:
    return tree is one or any(parent is one or parent[key] is one for parent, key in places(tree))


def near(value: Any, draw: random.Random) -> Any:
    """Something like it."""
    if isinstance(value, bool):
        return draw.choice((not value, int(value), str(value)))
    if isinstance(value, int | float):
        return draw.choice((-value, 0, value + 1, value + 0.5, value * 10, value / 3, str(value), [value]))
    if isinstance(value, str):
        return draw.choice((typo(value, draw), typo(value, draw), value.upper(), value + " ", [value], value[:-1]))
    if isinstance(value, list):
        return draw.choice((value[:-1], value + value[:1], value[::-1], {str(i): one for i, one in enumerate(value)}))
    if isinstance(value, dict):
        return draw.choice((list(value), list(value.values()), {**value, "x": 1}, str(value)))
    return 1


def typo(word: str, draw: random.Random) -> str:
    """A letter is missing, doubled, another, or two are swapped."""
    i = draw.randrange(len(word) + 1)
    one, two = word[i : i + 1], word[i + 1 : i + 2]
    return word[:i] + draw.choice(("", one + one, two + one, "x", "_" + one, one.upper())) + word[i + 1 :]


def deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value
