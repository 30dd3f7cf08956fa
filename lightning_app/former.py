"""Configs, command lines and checkpoints of before: what was called otherwise, or stood elsewhere, and what is gone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_app.errors import InputError

PACKAGE = Path(__file__).parent
# A class of this project by its place.
NAMED = re.compile(r"\blightning_app((?:\.\w+)+)\.([A-Z]\w*)\b")


@dataclass(frozen=True)
class Gone:
    """An option that was removed. Its former default is what happens now; other values are refused."""

    default: Any
    remedy: str


def advanced(*names: str) -> dict[str, str | Gone]:
    """Options that went into the group `advanced`."""
    return {name: f"advanced.{name}" for name in names}


SEED = Gone(0, "leave it out")
MODULES = ("ArticleGPT", "CausalLM", "VardaGPT", "ARTGPT2")
OF_MEMORY = advanced(
    *("nprobe", "pq_m", "pq_bits", "m", "ef_construction", "ef_search", "eviction", "dtype", "path", "seed")
)
OF_LEARNING = advanced(
    *("store_free_steps", "store_rise_steps", "budget_weight", "hard_deletion_after", "delete_quantile")
)
OF_ART = advanced(
    *("novelty_penalty", "fast_learning_rate", "fast_inputs", "merge_at", "choice_alpha"),
    *("average_decay", "rehearsed_texts", "learn_at_most"),
)
READERS = dict.fromkeys(("CacheReader", "KNNReader", "TrimeReader"), OF_MEMORY) | dict.fromkeys(
    ("AttentionReader", "ConcatReader"), OF_MEMORY | OF_LEARNING
)
# By class, options of before: where they stand today, in dots.
OPTIONS: dict[str, dict[str, str | Gone]] = {
    **{module: {"regularizers": "extensions"} for module in MODULES},
    **READERS,
    "ARTRegularizer": OF_ART,
    "ART": OF_ART,
    "PlasticitySchedule": advanced(
        *("neuron_level", "strategy", "neuron_strategy", "warmup", "stability_rule", "stability_window"),
        *("keep_per_layer", "keep_removed", "regrow", "regrow_how", "automatic", "tolerance"),
        *("layer_lr_factor", "head_lr_factor", "sample_batches", "sample_batch_size", "datasets", "combine"),
        "save_importance",
    )
    | {"sample_seed": SEED},
    "AveragedWeights": {
        "update_every_n_steps": Gone(1, "give decay ** (1 / n) instead of an update every n steps"),
        "update_starting_at_step": Gone(None, "the average follows from the start, and forgets it"),
    },
    "Dashboard": {
        "every_seconds": Gone(10.0, "`python main.py report` draws the page at any time"),
        "single_file": Gone(False, "`python main.py report --single_file` writes one"),
    },
    "ProgressLine": {"refresh_rate": Gone(5, "give Lightning's TQDMProgressBar in its place")},
    "Projector": {"seed": SEED},
    "Samples": {"seed": SEED},
    "WarmupCosine": {"last_epoch": Gone(-1, "--ckpt_path resumes")},
    "HeadController": advanced(
        *("controller_reg_weight", "controller_update_freq", "controller_lr", "measured_heads", "update_scale"),
        *("learn_from_loss", "sample_rows", "entropy_rows", "log_every"),
    )
    | {"finally_": "at_end", "seed": SEED},
}
# Classes whose options stand under a key that need not name one.
AT: dict[str, tuple[str, ...]] = {
    "model": MODULES,
    "art": ("ARTRegularizer",),
    "extensions": ("ARTRegularizer",),
    "readers": tuple(READERS),
    "callbacks": (
        *(
            "PlasticitySchedule",
            "HeadController",
            "AveragedWeights",
            "Dashboard",
            "ProgressLine",
            "Projector",
            "Samples",
        ),
    ),
    "scheduler": ("WarmupCosine",),
}


# Classes


def with_names_of_today(text: str) -> str:
    """The text of a config, or a word of the command line, in which a class that is not where it is said to be is named
    by itself: `lightning_app.modules.VardaGPT` becomes `VardaGPT`."""
    return NAMED.sub(lambda found: found[0] if _is_here(found[1]) else found[2], text)


def _is_here(module: str) -> bool:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


# Options


def with_options_of_today(tree: Any, key: str = "") -> Any:
    """What a config holds, or a part of it, with each option where it stands today.

    Args:
        tree: as YAML has it; not changed.
        key: under which it stands.

    Raises:
        InputError: an option that is gone has another value than its default.
    """
    if isinstance(tree, list):
        return [with_options_of_today(one, key) for one in tree]
    if not isinstance(tree, Mapping):
        return tree
    inner = {name: with_options_of_today(value, str(name)) for name, value in tree.items()}
    classes = _classes(key.removesuffix("+"), _name(inner["class_path"]) if "class_path" in inner else None)
    if isinstance(inner.get("init_args"), Mapping):
        return inner | {"init_args": options_of_today(inner["init_args"], *classes)}
    return options_of_today(inner, *classes)


def _classes(key: str, name: str | None) -> tuple[str, ...]:
    """The classes of which an option below a key may be; somebody's own module has the options of ours."""
    own_module = key == "model" and name not in OPTIONS
    return AT.get(key, ()) if name is None or own_module else (name,)


def options_of_today(options: Mapping[str, Any], *classes: str) -> dict[str, Any]:
    """The options of a class where they stand today; of several classes, that which has such an option.

    Raises:
        InputError: one is gone, or stands under both names with two values.
    """
    found = {name: value for name, value in options.items() if _place(str(name), classes) is None}
    for name, value in options.items():
        place = _place(str(name), classes)
        if isinstance(place, Gone):
            _refuse_others(name, value, place)
        elif place:
            _put(found, place, value, former=name)
    return found


def _put(tree: dict[str, Any], place: str, value: Any, *, former: str) -> None:
    """Join a list that stands there already: both names may be given, of which one is null as a rule."""
    *groups, name = place.split(".")
    for group in groups:
        inner = tree.get(group) or {}
        if not isinstance(inner, Mapping):
            raise InputError(f"{group} is {inner}; it must hold options by their names, such as {former}")
        tree[group] = dict(inner)
        tree = tree[group]
    there = tree.get(name)
    if isinstance(there, list) and isinstance(value, list):
        tree[name] = [*there, *value]
    elif there is None or value is None:
        tree[name] = there if value is None else value
    elif there != value:
        raise InputError(f"{former} is {value}, and {place}, its name of today, is {there}: give {place} alone")


def _place(name: str, classes: Sequence[str]) -> str | Gone | None:
    """The row of an option that was renamed, moved or removed; None for one that is still there."""
    plain = name.removesuffix("+")
    place = next((OPTIONS[c][plain] for c in classes if plain in OPTIONS.get(c, {})), None)
    return f"{place}+" if isinstance(place, str) and plain != name else place


def _refuse_others(name: str, value: Any, gone: Gone) -> None:
    if _spelt(value) != _spelt(gone.default):
        raise InputError(
            f"{name} is {value}; this option is gone, and it is always {_spelt(gone.default)}: {gone.remedy}"
        )


def _spelt(value: object) -> str:
    """As YAML and the command line spell it."""
    return {"none": "null"}.get(str(value).lower(), str(value).lower())


def _name(class_path: object) -> str:
    return str(class_path).rpartition(".")[2]


# The command line


def words_of_today(words: Sequence[str], named: Mapping[str, str] | None = None) -> list[str]:
    """The words of a command line, with classes and options as they are called today, in values too.

    Args:
        named: by key the class that the configs name, without `init_args`.
    """
    found: list[str] = []
    classes = dict(named or {})
    left = iter([with_names_of_today(word) for word in words])
    for word in left:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or not ("." in key or equals):
            found.append(word)
            continue
        given = value if equals else next(left, "")
        path = _path(key.removeprefix("--").split("."), given, classes)
        if path is None:
            continue
        today = _value_of_today(given, path[-1])
        classes[_owner(path)] = _name(today)
        key = "--" + ".".join(path)
        found += [f"{key}={today}"] if equals else [key, today]
    return found


def _path(steps: Sequence[str], given: str, classes: Mapping[str, str]) -> list[str] | None:
    """The steps of a key, each as it is called today; None: the option is gone, and `given` is its default."""
    path: list[str] = []
    for step in steps:
        owner = _owner(path)
        place = _place(step, _classes(owner.rpartition(".")[2], classes.get(owner)))
        if isinstance(place, Gone):
            _refuse_others("--" + ".".join(steps), given, place)
            return None
        path += place.split(".") if place else [step]
    return path


def _owner(path: Sequence[str]) -> str:
    """The key of the class whose option comes next."""
    return ".".join(step for step in path if step not in ("init_args", "class_path")).removesuffix("+")


def _value_of_today(given: str, key: str) -> str:
    """A value that is a mapping or a list, as YAML has it, with its options as they are called today."""
    try:
        tree = yaml.safe_load(given) if "{" in given else None
    except yaml.YAMLError:
        return given
    today = with_options_of_today(tree, key)
    return given if today == tree else yaml.safe_dump(today, default_flow_style=True, width=10**9).strip()
