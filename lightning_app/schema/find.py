"""What a config or a command line has that the schema does not: mistakes that need no import to be seen.

The schema lies in configs/schema.json. Without it nothing is looked at.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lightning_app.cli_checks import CONFIG_FILES, command_line_options, option
from lightning_app.errors import InputError, did_you_mean
from lightning_app.shipped import shipped

Schema = dict[str, Any]
PATH = shipped("configs/schema.json")
CLASS, PARTS = "class_path", ("init_args", "dict_kwargs")
NAMES = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"} | {
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}
RANGES = {"minimum": "be at least", "exclusiveMinimum": "be above", "maximum": "be at most"} | {
    "exclusiveMaximum": "be below"
}
BESIDE = ("config", "print_config", "dry_run", "debug", "verbose", "return_predictions")  # options of no YAML
LIBRARIES = ("lightning", "lightning_app", "torch", "transformers")  # whose classes are all in the schema
CLOSER, CLOSE = 0.8, 0.6  # of difflib's ratio: names that are meant before those of other places, and after them
SHOWN = 6  # allowed words in a message
DEPTH = 3  # of the keys that are suggested: classes may hold each other without end


@cache
def schema() -> Schema | None:
    return dict(json.loads(PATH.read_text(encoding="utf-8"))) if PATH is not None else None


def check_config(config: Any, path: Path) -> None:
    """Refuse a config with a key, a class or a value that no run has.

    Raises:
        InputError: in one line, with the nearest right one.
    """
    if (whole := schema()) is None or not isinstance(config, Mapping):
        return
    from jsonschema import Draft202012Validator  # a tenth of a second

    for error in Draft202012Validator(whole).iter_errors(_with_short_names(config)):
        if (told := _told(_innermost(error))) is not None:
            raise InputError(f"{told} (in {path})")


def check_words(argv: Sequence[str], classes: Mapping[str, str] | None = None) -> None:
    """The same of the options of a command line.

    Args:
        classes: by key, those that configs name: nothing is known of the options of a class that is not in the schema.

    Raises:
        InputError: in one line, with the nearest right one.
    """
    if schema() is None:
        return
    values = dict(command_line_options(argv))
    foreign = _foreign(argv, classes or {})
    for word in argv:
        key = word.partition("=")[0].removeprefix("--")
        is_foreign = any(key.startswith(f"{one}.") for one in foreign)
        if not word.startswith("--") or key in BESIDE or key.endswith("help") or is_foreign:
            continue
        found, parts = [_root()], key.split(".")
        for n, part in enumerate(parts):
            if not (found := _at(found, [part])):
                raise InputError(f"there is no option --{key}{_near(part, parts[:n])}")
        if key in values and not _is_right(values[key], found):
            raise InputError(f"--{key} is {_short(values[key])}; it must be {expected({'anyOf': found})}")


def _foreign(argv: Sequence[str], classes: Mapping[str, str]) -> list[str]:
    """Keys of classes that are not in the schema, with `init_args` and without."""
    given = {"model": option(argv, "model"), **dict(command_line_options(argv))}
    said = {key: value for key, value in given.items() if isinstance(value, str)}
    return [key for key, name in {**classes, **said}.items() if _is_foreign(name)]


def _is_foreign(name: str) -> bool:
    place, _, last = name.rpartition(".")
    return last not in _names() or (bool(place) and place.split(".")[0] not in LIBRARIES)


@cache
def _names() -> set[str]:
    """All classes by their names alone."""
    found: set[str] = set()
    stack: list[Any] = [_root()["$defs"]]
    while stack:
        one = stack.pop()
        stack.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        if isinstance(one, dict) and isinstance(one.get("enum"), list):
            found |= {str(name).rpartition(".")[2] for name in one["enum"]}
    return found


def _is_right(value: Any, schemas: Sequence[Schema]) -> bool:
    """Whether one of them takes it; a file is looked into later."""
    if isinstance(value, str) and Path(value).suffix in CONFIG_FILES:
        return True
    from jsonschema import Draft202012Validator

    whole = {"$defs": _root()["$defs"], "anyOf": list(schemas)}
    return bool(Draft202012Validator(whole).is_valid(_with_short_names(value)))


# Messages


def _innermost(error: Any) -> Any:
    """What a value lacks in the way to be right that it is nearest to."""
    while error.context:
        here = [one for one in error.context if one.absolute_path == error.absolute_path]
        inner = [one for one in error.context if one not in here or one.validator not in ("type", "pattern", "not")]
        deepest = max((len(one.absolute_path) for one in inner), default=0)
        nearest = [one for one in inner if len(one.absolute_path) == deepest]
        if all(one in here and one.validator in ("enum", "pattern") for one in nearest):
            return error
        error = nearest[0]
    return error


def _told(error: Any) -> str | None:
    """None: it names a class that is like none here, and may be one of the user's."""
    keys = [str(key) for key in error.absolute_path]
    if error.validator == "additionalProperties":
        known = set(error.schema.get("properties", {}))
        unknown = next(str(key) for key in error.instance if str(key) not in known)
        return f"there is no option {'.'.join([*keys, unknown])}{_near(unknown, keys, known)}"
    if keys and (keys[-1] == CLASS or _is_name(error.schema)) and isinstance(error.instance, str):
        near = did_you_mean(_near_classes(error))
        return f"{'.'.join(keys)} is {error.instance!r}, which is no class here: {near}" if near else None
    bound = RANGES.get(error.validator)
    right = f"be {expected(error.schema)}" if bound is None else f"{bound} {error.validator_value:g}"
    return f"{'.'.join(keys)} is {_short(error.instance)}; it must {right}"


def _is_name(schema: Schema) -> bool:
    return any("enum" in one and "." in str(one["enum"][0]) for one in schema.get("anyOf", ()))


def _near_classes(error: Any) -> list[str]:
    names = [str(name) for one in error.schema.get("anyOf", ()) for name in one.get("enum", ())]
    short = error.instance.rpartition(".")[2]
    return difflib.get_close_matches(short, [name for name in names if "." not in name], n=1, cutoff=CLOSE)


def _near(word: str, before: Sequence[str], known: Iterable[str] | None = None) -> str:
    """The key of that name in the same section, else the nearest of its neighbours, else of all keys."""
    place = [part for part in before if part not in PARTS]
    siblings = known if known is not None else [key for one in _at([_root()], before) for key in _children(one)]
    siblings = [*siblings, *([CLASS] if "init_args" in siblings else [])]
    beside = [one for one in siblings if one.endswith("+") == word.endswith("+")]
    same = sorted(key for key in keys() if key.rpartition(".")[2] == word)
    lasts = {key.rpartition(".")[2]: key for key in reversed(keys())}
    tried = (
        [".".join([*place, one]) for one in difflib.get_close_matches(word, beside, n=1, cutoff=CLOSER)],
        [key for key in same if place and key.startswith(f"{place[0]}.")],
        [".".join([*place, one]) for one in difflib.get_close_matches(word, beside, n=1, cutoff=CLOSE)],
        same,
        [lasts[one] for one in difflib.get_close_matches(word, lasts, n=1, cutoff=CLOSE)],
    )
    found = next((keys for keys in tried if keys), None)
    return f": {did_you_mean([min(found, key=lambda key: key.count('.'))])}" if found else ""


def expected(schema: Schema) -> str:
    """In words, what a value must be."""
    words = ["a class, or its options"] if _is_name(schema) else list(dict.fromkeys(_words(schema)))
    return " or ".join(words) if words else "another"


def _words(schema: Schema) -> Iterator[str]:
    if "$ref" in schema:
        yield from _words(resolved(schema))
    for one in schema.get("anyOf", ()):
        yield from _words(one)
    if "enum" in schema:
        yield from [json.dumps(one) for one in schema["enum"][:SHOWN]]
    for kind in kinds_of(schema):
        if not (kind == "string" and "pattern" in schema):
            yield NAMES[kind]
    if "then" in schema:
        yield "a class, or its options"


def kinds_of(schema: Schema) -> list[str]:
    """Names of the JSON types that it says; an option may be called `type`, too."""
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds) if isinstance(kinds, list) else []


def _short(value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# The schema, walked through


def _root() -> Schema:
    whole = schema()
    assert whole is not None
    return whole


def resolved(one: Schema) -> Schema:
    """What a reference stands for."""
    return dict(_root()["$defs"][one["$ref"].rpartition("/")[2]]) if "$ref" in one else one


def _ways(one: Schema) -> Iterator[Schema]:
    """All schemas of which a value may have to be one, a list's items included."""
    one = resolved(one)
    yield one
    for key in ("anyOf", "allOf"):
        for inner in one.get(key, ()):
            yield from _ways(inner)
    for key in ("then", "else", "items"):
        if isinstance(one.get(key), dict):
            yield from _ways(one[key])


def class_options(one: Schema, name: str) -> dict[str, Schema]:
    """What a class takes, by option, where it may stand; nothing where it may not."""
    for way in _ways(one):
        if name in _class_names(way.get("if", {})):
            return dict(way["then"]["properties"].get("init_args", {}).get("properties", {}))
    return {}


def _class_names(condition: Schema) -> list[str]:
    return list(condition.get("properties", {}).get(CLASS, {}).get("enum", ()))


def _children(one: Schema) -> dict[str, list[Schema]]:
    """What stands below, by key; options of a class also without the `init_args` that a command line leaves out."""
    found: dict[str, list[Schema]] = {}
    for way in _ways(one):
        for key, inner in way.get("properties", {}).items():
            found.setdefault(key, []).append(inner)
    return found


def _at(schemas: Sequence[Schema], parts: Sequence[str]) -> list[Schema]:
    """What may stand under the parts of a key; nothing where there is no such key."""
    for part in parts:
        if any(_is_open(one) for one in schemas):
            return [{}]
        known = [child for one in schemas for child in _children(one).get(part, ())]
        schemas = list(schemas) if part.isdigit() and not known else known
    return list(schemas)


def _is_open(one: Schema) -> bool:
    """Whether it says nothing of its keys."""
    return any(way == {} or ("object" in kinds_of(way) and "properties" not in way) for way in _ways(one))


@cache
def keys() -> list[str]:
    """All dotted keys but those of what a part of a class holds, the shortest first; none without the schema."""
    if schema() is None:
        return []
    found: dict[str, None] = {}
    stack = [("", [_root()], 0)]
    while stack:
        prefix, schemas, depth = stack.pop(0)
        for key, inner in {k: v for one in schemas for k, v in _children(one).items()}.items():
            name = f"{prefix}{key}"
            if key in (CLASS, *PARTS) or key.endswith("+") or name in found:
                continue
            found[name] = None
            if depth < DEPTH - 1:
                stack.append((f"{name}.", inner, depth + 1))
    return list(found)


def _with_short_names(tree: Any) -> Any:
    """Classes of this project by their names alone: where they stood before does not matter."""
    if isinstance(tree, Mapping):
        return {
            str(key): _short_name(value) if key == CLASS else _with_short_names(value) for key, value in tree.items()
        }
    return [_with_short_names(one) for one in tree] if isinstance(tree, list) else tree


def _short_name(value: Any) -> Any:
    return value.rpartition(".")[2] if isinstance(value, str) and value.startswith("lightning_app.") else value
