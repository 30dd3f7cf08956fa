"""One mistake in a shipped config: `python -m tests.fuzz.mistakes --n 500 --seed 0`.

What fit says of it, and whether the schema underlines what fit refuses, and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import yaml

from lightning_app.errors import InputError
from lightning_app.option_checks import RULES
from lightning_app.schema import find
from lightning_app.schema.find import CLASS
from lightning_app.yaml_file import read_yaml
from tests.fuzz.files import TEXT
from tests.fuzz.odd import places, typo
from tests.fuzz.registry import ACCEPTED, REFUSED
from tests.fuzz.yamls import fitted, in_this_process, small
from tests.golden.shipped import NAMES

FREE = ("options", "dict_kwargs")  # mappings of other libraries' options, which nobody lists
Place = tuple[Any, Any]  # a mapping or list, and a key of it
Change = Callable[[dict[str, Any], random.Random], str | None]


@dataclass
class Result:
    """Of many mutants.

    Attributes:
        answered: by kind, those that fit refuses in one line that names what is right.
        refused: by kind, those that fit refuses.
        underlined: by kind, those of these that the schema refuses.
        wrongly: those that fit takes and the schema refuses.
        notes: what was not as it should be.
    """

    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    underlined: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    wrongly: int = 0
    notes: list[str] = field(default_factory=list)


def tried(n: int, *, seed: int) -> Result:
    """`n` mutants, equal shares of each kind."""
    bases = [small(name) for name in sorted({*NAMES} - {"streaming"})]
    result, here = Result(), Path.cwd()
    with TemporaryDirectory(prefix="mistakes-") as folder, in_this_process():
        os.chdir(folder)
        try:
            for name in ("train", "val"):
                Path(f"{name}.txt").write_text(TEXT * (40 if name == "train" else 9))
            for number in range(n):
                _try(list(CHANGES)[number % len(CHANGES)], bases, random.Random(f"{seed} {number}"), result)
        finally:
            os.chdir(here)
    return result


def _try(kind: str, bases: list[dict[str, Any]], draw: random.Random, result: Result) -> None:
    right = None
    while right is None:
        tree = copy.deepcopy(draw.choice(bases))
        right = CHANGES[kind](tree, draw)
    Path("mutant.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with mock.patch.object(find, "schema", return_value=None):
        by_fit = fitted(kind, trains=False)
    answer, underlined = by_fit, True
    try:
        find.check_config(read_yaml(Path("mutant.yaml")), Path("mutant.yaml"))
        underlined = False
    except InputError:
        answer = fitted(kind, trains=False)
    if by_fit.name == ACCEPTED:
        result.accepted += 1
        result.wrongly += underlined
        if underlined:
            result.notes.append(f"underlined, and fit takes it: {answer.note}")
        return
    result.refused[kind] += 1
    result.underlined[kind] += underlined
    clear = answer.name == REFUSED and right in answer.note and "subtypes" not in answer.note.lower()
    result.answered[kind] += clear
    if not clear or not underlined:
        what = ", ".join([*(["not clear"] if not clear else []), *(["not underlined"] if not underlined else [])])
        result.notes.append(f"{what}; {right} is meant: {answer.note}")


# The mistakes: each changes a tree, and says what a good answer names; None: there is nothing to change


def _chosen(tree: Any, draw: random.Random, fits: Callable[[Any, Any], bool]) -> Place | None:
    found = [(parent, key) for parent, key in places(tree, closed=FREE) if fits(parent, key)]
    return draw.choice(found) if found else None


def key_typo(tree: dict[str, Any], draw: random.Random) -> str | None:
    place = _chosen(tree, draw, lambda parent, key: isinstance(parent, dict) and len(str(key)) > 2)
    if place is None or (new := typo(str(place[1]), draw)) in place[0]:
        return None
    parent, key = place
    items = [(new if name == key else name, value) for name, value in parent.items()]
    parent.clear()
    parent.update(items)
    return str(key)


def class_typo(tree: dict[str, Any], draw: random.Random) -> str | None:
    place = _chosen(tree, draw, lambda parent, key: key == CLASS)
    if place is None:
        return None
    parent, key = place
    before, dot, name = str(parent[key]).rpartition(".")
    parent[key] = f"{before}{dot}{typo(name, draw)}"
    return name if parent[key] != f"{before}{dot}{name}" else None


def wrong_type(tree: dict[str, Any], draw: random.Random) -> str | None:
    place = _chosen(tree, draw, lambda parent, key: isinstance(parent[key], bool | int | float))
    if place is None:
        return None
    parent, key = place
    parent[key] = draw.choice(("many", [parent[key]], {"x": 1}, "3x"))
    return str(key)


def out_of_range(tree: dict[str, Any], draw: random.Random) -> str | None:
    numbers = {name.rpartition(".")[2] for name in RULES} | {"layers", "heads", "embedding_dim", "block_size"}
    place = _chosen(tree, draw, lambda parent, key: key in numbers and type(parent[key]) in (int, float))
    if place is None:
        return None
    parent, key = place
    parent[key] = draw.choice((-3, -7, -0.5))
    return str(key)


def wrong_nesting(tree: dict[str, Any], draw: random.Random) -> str | None:
    """A key stands a level higher, or below another mapping."""
    place = _chosen(tree, draw, lambda parent, key: isinstance(parent, dict) and not isinstance(parent[key], dict))
    others = [parent for parent, _ in places(tree, closed=FREE) if isinstance(parent, dict)]
    if place is None:
        return None
    parent, key = place
    target = draw.choice(others)
    if key in target or key == CLASS:
        return None
    target[key] = parent.pop(key)
    return str(key)


CHANGES: dict[str, Change] = {
    "key typo": key_typo,
    "class typo": class_typo,
    "wrong type": wrong_type,
    "out of range": out_of_range,
    "wrong nesting": wrong_nesting,
}


def table(result: Result) -> str:
    columns = (result.refused, result.answered, result.underlined)
    rows = [("kind", "refused", "answered", "underlined")]
    rows += [(kind, *(str(counts[kind]) for counts in columns)) for kind in CHANGES]
    rows.append(("all", *(str(counts.total()) for counts in columns)))
    lines = ["  ".join(word.rjust(13) for word in row) for row in rows]
    return "\n".join([*lines, f"accepted {result.accepted}, of which underlined {result.wrongly}"])


def command() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.mistakes", description=__doc__)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = tried(args.n, seed=args.seed)
    print("\n".join([*result.notes, table(result)]))


if __name__ == "__main__":
    command()
