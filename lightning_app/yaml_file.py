"""Reading YAML, and walking through what it holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_app.errors import InputError
from lightning_app.utf8 import UTF_16

LINKED = ("vocab_size", "block_size")  # a config says them once, under data; they are linked to the backbone
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)


def read_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        InputError: it is not YAML in UTF-8; in one line, though YAML's parser draws a picture of the place.
        FileNotFoundError: there is no such file.
    """
    try:
        return copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} is not readable YAML: {why_unreadable(error)}") from None


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """A command reads each config four times, and YAML takes 10 ms for one of 50 lines."""
    return yaml.safe_load(text)


def why_unreadable(error: Exception) -> str:
    """In one line, with the place."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        kind = "it is UTF-16" if error.object.startswith(UTF_16) else f"byte {error.start} is not UTF-8"
        return f"{kind}; save it as UTF-8"
    return " ".join(str(error).split())


def leaves(
    tree: Mapping[Any, Any], prefix: str = "", *, lists: Literal["values", "numbers", "classes"] = "values"
) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything but a mapping that is not empty.

    Args:
        tree: such as the options of a run.
        prefix: of all keys.
        lists: "values": a list is a value. "numbers": its items stand under their numbers, as trainer.callbacks.0.
            "classes": items that are mappings under the names of their classes, as trainer.callbacks[Samples].
    """
    for key, value in tree.items():
        inner = dict(value) if isinstance(value, Mapping) else _items(value, lists)
        if inner:
            joint = "" if lists == "classes" and isinstance(value, list) else "."
            yield from leaves(inner, f"{prefix}{key}{joint}", lists=lists)
        else:
            yield f"{prefix}{key}", value


def _items(value: Any, lists: str) -> dict[str, Any]:
    """What stands under a list; empty for what counts as a value."""
    if lists == "numbers" and isinstance(value, list | tuple):
        return {str(i): one for i, one in enumerate(value)}
    if lists == "classes" and isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        return {f"[{_class(one) or i}]": one for i, one in enumerate(value)}
    return {}


def _class(part: Any) -> str:
    return str(part.get("class_path", "")).rpartition(".")[2] if isinstance(part, Mapping) else ""
