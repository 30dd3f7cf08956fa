"""What a config says of its optimizer, as the parser takes it: a list of them is one class with a list of parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lightning_app.errors import InputError

BY_PARTS = "lightning_app.training.optimizer_parts.OptimizerByParts"
WORDS = ("--model.init_args.optimizer", "--model.optimizer")
ENTRY = ("match", "class_path", "init_args", "dict_kwargs")
# torch's takes fused queries, keys and values for one matrix, and computes in bf16, also where that is slow.
OURS = dict.fromkeys(("torch.optim.Muon", "Muon"), "lightning_app.training.muon.Muon")


def with_parts(tree: Any) -> Any:
    """A copy of a config, in which a list of optimizers is one class with a list of parts.

    Raises:
        InputError: an entry that is not a mapping.
    """
    model = tree.get("model") if isinstance(tree, Mapping) else None
    if not isinstance(model, Mapping):
        return tree
    if isinstance(model.get("init_args"), Mapping):
        return {**tree, "model": {**model, "init_args": _changed(model["init_args"], "model.init_args")}}
    return {**tree, "model": _changed(model, "model")}


def words_with_parts(words: Sequence[str]) -> list[str]:
    """A command line whose `--model.init_args.optimizer '[...]'` is as `with_parts` has it."""
    found, joined = [], [joint for joint in words for joint in _at_equals(joint)]
    for before, word in zip(["", *joined], joined, strict=False):
        found.append(_word(word) if before in WORDS else word)
    return found


def _at_equals(word: str) -> list[str]:
    key, equals, value = word.partition("=")
    return [key, value] if equals and key in WORDS else [word]


def _word(value: str) -> str:
    try:
        given = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    today = _changed({"optimizer": given}, "model.init_args")["optimizer"]
    return value if today == given else today if isinstance(today, str) else json.dumps(today)


def _changed(options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    given, key = options.get("optimizer"), f"{prefix}.optimizer"
    if isinstance(given, list):
        parts = [_part(entry, f"{key}.{i}") for i, entry in enumerate(given)]
        return {**options, "optimizer": {"class_path": BY_PARTS, "init_args": {"parts": parts}}}
    return {**options, "optimizer": _ours(given)} if "optimizer" in options else dict(options)


def _part(entry: Any, key: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise InputError(f"{key} is {entry!r}; it must be a mapping with class_path, and init_args and match")
    if "class_path" not in entry:
        raise InputError(f"{key} has no class_path; give one, such as torch.optim.AdamW")
    if unknown := sorted(entry.keys() - set(ENTRY), key=str):
        raise InputError(f"{key} has {unknown[0]!r}; an entry has {', '.join(ENTRY[:3])}")
    spec = {name: value for name, value in entry.items() if name != "match"}
    return {"match": entry.get("match"), "optimizer": _ours(spec)}


def _ours(given: Any) -> Any:
    """Muon by its name is the one of this project."""
    if isinstance(given, str):
        return OURS.get(given, given)
    if isinstance(given, Mapping) and "class_path" in given:
        return {**given, "class_path": OURS.get(given["class_path"], given["class_path"])}
    return given
