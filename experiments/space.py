"""The options that a sweep tries, as YAML: a dotted option -> {low, high, log, step} or {choices}."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_app.errors import InputError

if TYPE_CHECKING:
    from optuna import Trial

Scalar = str | int | float | bool | None
FORM = "give {low: ..., high: ...}, with log: true or step: ... if need be, or {choices: [...]}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def draw(self, trial: Trial, name: str) -> Scalar:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Choices:
    """One of these."""

    choices: list[Scalar]

    def draw(self, trial: Trial, name: str) -> Scalar:
        found: Scalar = trial.suggest_categorical(name, self.choices)
        return found


Space = dict[str, Range | Choices]


def read_space(path: Path) -> Space:
    """The space of a YAML file.

    Raises:
        InputError: no readable file, or an option that is neither a range nor choices; named with what was found.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is no readable YAML: {error}") from None
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{path} must hold options with what to try for each, such as data.block_size: {{choices: [64, 128]}}"
        )
    return {str(name): _dimension(str(name), given) for name, given in found.items()}


def _dimension(name: str, given: Any) -> Range | Choices:
    keys = set(given) if isinstance(given, Mapping) else set()
    if keys == {"choices"} and isinstance(given["choices"], list) and given["choices"]:
        if any(not isinstance(one, Scalar) for one in given["choices"]):
            raise InputError(
                f"{name} has choices {given['choices']}: each must be one number, text, true, false or null"
            )
        return Choices(given["choices"])
    if not {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
        raise InputError(f"{name} is {given!r}: {FORM}")
    return _range(name, **given)


def _range(name: str, low: Any, high: Any, log: Any = False, step: Any = None) -> Range:
    numbers = [x for x in (low, high, step) if x is not None]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers) or len(numbers) < 2:
        raise InputError(
            f"{name} has low {low!r}, high {high!r}, step {step!r}: numbers are needed (YAML reads 1e-3 as a text, "
            "1.0e-3 as a number)"
        )
    if not low < high or not isinstance(log, bool) or (log and (low <= 0 or step is not None)) or (step or 1) <= 0:
        raise InputError(
            f"{name} has low {low}, high {high}, log {log}, step {step}: low must be below high, and with log above 0 "
            "and without step"
        )
    return Range(low, high, log, step)


def check_known(space: Space, options: Iterable[str]) -> None:
    """Refuse what the config does not have.

    Args:
        options: dotted names of all that a resolved config has; `init_args` may be left out.
    """
    known = {_plain(option): option for option in options}
    for name in space:
        if _plain(name) not in known:
            near = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.0)
            raise InputError(f"the config has no option {name}; the nearest that it has is {known[near[0]]}")


def _plain(name: str) -> str:
    return name.replace(".init_args", "")
