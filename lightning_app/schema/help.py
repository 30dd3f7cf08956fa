"""`python main.py fit --help`: the options of the config's own classes first, from the schema, before anything is
imported."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_app.program import program
from lightning_app.schema.find import CLASS, Schema, class_options, expected, resolved

WIDTH, COLUMN = 118, 44
SENTENCE = re.compile(r"(?<=[^l]\.)\s(?=[A-Z`])")  # an end of one, which "et al." is not
HOW = (
    "Every key of a config can be given behind it, with dots: --trainer.max_steps 100. A config may leave out what has "
    "a default; several are laid over each other in their order. --print_config prints the whole of it, "
    "--model.help CLASS tells the options of another class."
)
RUN = ("name", "seed_everything", "runs_dir", "fit_in", "init_from", "ckpt_path")  # first, of those of no section
LAST = (".optimizer", ".scheduler")  # of a model's parts
MODEL, BACKBONE = "ArticleGPT", "Decoder"  # where no config names others


def told(whole: Schema, command: str, does: str, classes: Mapping[str, str]) -> str:
    """Help of a command with a trainer.

    Args:
        whole: the schema.
        command, does: its name, and what it does in one line.
        classes: by key, those that the configs name.
    """
    options = whole["properties"]
    parts = [
        f"{program()} {command} --config FILE [--KEY VALUE ...]: {does}",
        textwrap.fill(HOW, WIDTH),
        *_of_classes(options["model"], classes),
        _section("the run", {key: options[key] for key in sorted(options, key=_rank) if _is_plain(key, options)}, "--"),
        _section("data", options["data"]["properties"], "--data."),
        _section("trainer, of Lightning's", options["trainer"]["properties"], "--trainer."),
    ]
    return "\n\n".join(parts)


def _of_classes(model: Schema, classes: Mapping[str, str]) -> Iterator[str]:
    """Sections of the model, and of the parts of it that are classes of this project."""
    named = {key: name for key, name in classes.items() if key == "model" or key.startswith("model.")}
    named = {"model": MODEL, "model.backbone": BACKBONE, **named}
    found: dict[str, Schema] = {}
    for key in sorted(named, key=lambda key: (key.count("."), key.endswith(LAST), key)):
        parent, _, last = key.rpartition(".")
        place = model if not parent else found.get(parent, {}).get(last, {})
        found[key] = class_options(place, named[key])
        if found[key]:
            yield _section(f"{key}: {named[key]}", found[key], f"--{key}.")


def _rank(key: str) -> tuple[int, str]:
    return (RUN.index(key) if key in RUN else len(RUN), key)


def _is_plain(key: str, options: Mapping[str, Schema]) -> bool:
    return not key.endswith("+") and "properties" not in options[key] and key != "model"


def _section(title: str, options: Mapping[str, Schema], prefix: str) -> str:
    rows = [_row(f"{prefix}{key}", one) for key, one in _flat(options) if not key.endswith("+")]
    return "\n".join([title, *rows])


def _flat(options: Mapping[str, Schema], before: str = "") -> Iterator[tuple[str, Schema]]:
    for key, one in options.items():
        inner = resolved(one)
        if inner.get("properties") and CLASS not in inner["properties"]:
            yield from _flat(inner["properties"], f"{before}{key}.")
        else:
            yield f"{before}{key}", one


def _row(name: str, one: Schema) -> str:
    """Name, what it is, and its default."""
    says = SENTENCE.split(" ".join(one.get("description", "").split()))[0]
    default = f"default {_shown(one['default'])}" if "default" in one else expected(one)
    text = f"{says.rstrip('.')} ({default})" if says else default
    first = f"  {name}".ljust(COLUMN)
    lines = textwrap.wrap(text, WIDTH - COLUMN) or [""]
    head = [first + lines[0]] if len(first) == COLUMN else [first, " " * COLUMN + lines[0]]
    return "\n".join([*head, *(" " * COLUMN + line for line in lines[1:])])


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return textwrap.shorten(text, 40, placeholder=" ...")
