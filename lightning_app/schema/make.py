"""The schema of what `fit` takes, from the types of its parser: jsonargparse makes one, and here is what it lacks.

It describes a part as well as a whole: an overlay gives some of the options, and a class may be left out where another
config has named it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from jsonargparse import _completions_jsonschema as of_parser
from jsonargparse import _typehints as types
from torch.optim import Optimizer

from lightning_app.optimizer_list import OURS
from lightning_app.option_checks import RULES
from lightning_app.schema.find import LIBRARIES, Schema, kinds_of

LISTED = ("lightning_app", "lightning", "torch.optim", "torch.distributed")  # whose classes are listed
# Of classes that are looked for by import: any but those of the libraries, which are all known.
OWN_CLASS = rf"^(?!({'|'.join(LIBRARIES)})\.)[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
FILE = r"\.(ya?ml|json)$"  # see `cli_checks.CONFIG_FILES`
# Where the options of some classes stand, for the ranges of `option_checks`.
LIMITED = {"Optimizer": "model.optimizer", "LRScheduler": "model.scheduler", "Callback": "trainer.callbacks.0"} | {
    "Decoder": "model.backbone",
    "Backbone": "model.backbone",
}
# What a string may hold where a number or a switch is meant: it is read as YAML is.
AS_TEXT = {
    "integer": r"^[-+]?[0-9][0-9_]*$",
    "number": r"^[-+]?([0-9][0-9_]*)?\.?[0-9_]*([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|nan)$",
    "boolean": r"^(true|false|True|False|TRUE|FALSE|yes|no|on|off)$",
    "null": r"^(null|Null|NULL|~|)$",
}


def schema_of(parser: Any) -> Schema:
    """What a parser takes from a file."""
    made = _Maker().generate(parser)
    _limit({"properties": made["properties"]}, "")
    for name, key in LIMITED.items():
        _limit(made["$defs"].get(name, {}), key)
    made["$defs"] = {name: _relaxed(part) for name, part in made.get("$defs", {}).items()}
    return _relaxed({key: part for key, part in made.items() if key != "$defs"}) | {"$defs": made["$defs"]}


class _Maker(of_parser.ParserJsonschema):
    """Lists the classes that a config may name, and what each takes."""

    def subclass_def(self, class_type: type, action: Any) -> Schema:
        classes = {path: self.class_parser_schema(path, action) for path in _paths(class_type)}
        classes |= {name: classes[ours] for name, ours in OURS.items() if ours in classes}
        whole = _one_of_classes(classes) if classes else {}
        if class_type is Optimizer:  # or a list of them, by parts of the model
            part = _one_of_classes(classes, beside={"match": {"type": ["string", "array", "null"]}})
            return {"anyOf": [whole, {"type": "array", "items": part}]}
        return whole

    def class_ref(self, class_type: type, action: Any, subclass: bool) -> Schema:
        if class_type is torch.Tensor:  # which no YAML has
            return {"not": {}}
        if not class_type.__module__.startswith(LISTED):
            return {"type": "object"}
        return super().class_ref(class_type, action, subclass)

    def callable_schema(self, typehint: Any, action: Any) -> Schema:
        """jsonargparse leaves out a callable that returns one of several classes."""
        returned = of_parser.get_callable_return_type(typehint)
        classes = [] if returned is None else types.get_class_types(returned)
        roots = [one for one in classes or () if not any(one is not more and issubclass(one, more) for more in classes)]
        known = [self.class_ref(one, action, subclass=True) for one in roots]
        return of_parser.anyof_schema(known or [{"type": "string"}])


def _paths(class_type: type) -> list[str]:
    """Where the class lies and all below it that a config may name."""
    found: dict[str, None] = {}
    for one in types.get_class_types(class_type):
        for cls in _below(one):
            path = types.get_import_path(cls)
            hidden = not path or "<locals>" in cls.__qualname__ or "._" in path
            if not (hidden or inspect.isabstract(cls) or types.is_protocol(cls)):
                found[str(path)] = None
    return list(found)


def _below(cls: type) -> Iterator[type]:
    """The class and all that derive from it, but metaclasses, whose list of subclasses is another method."""
    if isinstance(cls, type) and not issubclass(cls, type):
        yield cls
        for one in cls.__subclasses__():
            yield from _below(one)


def _one_of_classes(classes: Mapping[str, Schema], beside: Mapping[str, Schema] | None = None) -> Schema:
    """A name alone, a mapping with the name, or one without it: options of a class that is named elsewhere.

    Args:
        beside: what else the mapping may have.
    """
    beside = {"dict_kwargs": {"type": "object"}, **(beside or {})}
    names = [*classes, *dict.fromkeys(path.rpartition(".")[2] for path in classes)]
    name = {"anyOf": [{"enum": names}, {"type": "string", "pattern": OWN_CLASS}]}
    each = [_with_class(path, {"class_path": {}, "init_args": one, **beside}) for path, one in classes.items()]
    options = _joined([one.get("properties", {}) for one in classes.values()])
    init_args = {"type": "object", "properties": options, "additionalProperties": False}
    unnamed = {
        "if": {"not": {"required": ["class_path"]}},
        "then": {
            "properties": {**options, "init_args": init_args, **beside},
            "additionalProperties": False,
        },
    }
    return {
        "if": {"type": "object"},
        "then": {"properties": {"class_path": name}, "allOf": [*each, unnamed]},
        "else": {"anyOf": [*name["anyOf"], {"type": "string", "pattern": FILE}]},
    }


def _with_class(path: str, properties: Schema) -> Schema:
    named = {"properties": {"class_path": {"enum": [path, path.rpartition(".")[2]]}}, "required": ["class_path"]}
    return {"if": named, "then": {"properties": properties, "additionalProperties": False}}


def _joined(each: Sequence[Mapping[str, Schema]]) -> dict[str, Schema]:
    """Options that any of the classes has; those of the same name are any of them."""
    found: dict[str, list[Schema]] = {}
    for properties in each:
        for key, schema in properties.items():
            if schema not in (known := found.setdefault(key, [])):
                known.append(schema)
    return {key: known[0] if len(known) == 1 else {"anyOf": known} for key, known in found.items()}


def _relaxed(schema: Any) -> Any:
    """Nothing is required but the class that a condition asks for; lists may be added to (`callbacks+`); text that
    reads as a number is one."""
    if isinstance(schema, list):
        return [_relaxed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    relaxed = {
        key: _relaxed(value) for key, value in schema.items() if key not in ("properties", "default", "required")
    }
    if "default" in schema:
        relaxed["default"] = schema["default"]
    if schema.get("required") == ["class_path"]:
        relaxed["required"] = ["class_path"]
    if "properties" in schema:
        properties = {key: _relaxed(one) for key, one in schema["properties"].items() if key != "$schema"}
        lists = {f"{key}+": _item_or_list(one) for key, one in properties.items() if _takes_lists(one)}
        relaxed["properties"] = properties | lists
    return _with_text(relaxed)


def _limit(tree: Any, key: str) -> None:
    """Write the ranges of `option_checks` down where they hold, in place; `key` is where the tree's options stand."""
    for one in tree if isinstance(tree, list) else ():
        _limit(one, key)
    for name, part in tree.items() if isinstance(tree, dict) else ():
        if name == "properties":
            for option, schema in part.items():
                _limit(schema, key if option in ("init_args", "class_path") else f"{key}.{option}".lstrip("."))
        elif isinstance(part, dict | list) and name != "default":
            _limit(part, f"{key}.0" if name in ("items", "prefixItems") else key)
    if isinstance(tree, dict) and {"integer", "number"} & {*kinds_of(tree)} and "minimum" not in tree:
        tree.update(_range(key))


def _range(key: str) -> Schema:
    """In JSON schema's words; nothing for what may also be a number beside the range."""
    rule = next((rule for pattern, rule in RULES.items() if fnmatch(key, pattern)), None)
    if rule is None:
        return {}
    low = min([rule.low, *rule.also])
    ends = {"exclusiveMinimum" if rule.without == rule.low else "minimum": low}
    ends |= {"exclusiveMaximum" if rule.without == rule.high else "maximum": rule.high}
    return {name: end for name, end in ends.items() if math.isfinite(end)}


def _with_text(schema: Schema) -> Schema:
    kinds = kinds_of(schema)
    patterns = [AS_TEXT[kind] for kind in kinds if kind in AS_TEXT]
    if not patterns or "string" in kinds or "pattern" in schema:
        return schema
    return schema | {"type": [*kinds, "string"], "pattern": "|".join(patterns)}


def _takes_lists(schema: Schema) -> bool:
    return any(map(_is_array, _options(schema)))


def _options(schema: Schema) -> list[Schema]:
    """A value must be one of them."""
    return [x for one in schema["anyOf"] for x in _options(one)] if "anyOf" in schema else [schema]


def _is_array(schema: Schema) -> bool:
    return "array" in kinds_of(schema)


def _item_or_list(schema: Schema) -> Schema:
    options = _options(schema)
    items = [one["items"] for one in options if _is_array(one) and isinstance(one.get("items"), dict)]
    return {"anyOf": [*options, *items]}
