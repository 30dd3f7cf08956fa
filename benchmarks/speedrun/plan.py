"""The plan, from its file: who runs what, for how long and how often."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_app.errors import InputError

PLAN = Path(__file__).with_name("plan.yaml")
ROOT = Path(__file__).parent.parent.parent
OURS = "ours"
COUNTS = "counts"  # the kind that has no steps, hence no budget


def short_sha256(path: str) -> str:
    """Of what a YAML of this repository says, comments apart."""
    found = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Attributes:
        kind: see `benchmarks.peers.contestant`.
        recipe: its options.
        trials: changes of them.
    """

    name: str
    kind: str
    title: str
    recipe: dict[str, Any]
    trials: list[dict[str, Any]]

    @property
    def is_neural(self) -> bool:
        return self.kind != COUNTS

    def options(self, trial: int) -> dict[str, Any]:
        """All that decides the recipe, the contents of a config among it."""
        found = {**self.recipe, **self.trials[trial]}
        return {**found, "config_sha256": short_sha256(found["config"])} if "config" in found else found


@dataclass(frozen=True)
class Plan:
    """All that is run.

    Attributes:
        budgets: CPU seconds, the smaller one first: trials have that.
        sooner: further ones of ours, a part of each budget.
        seeds: of each chosen recipe.
        seeds_of_first: of ours and the best rival, on the text of the trials.
        overshoot: of the budget, beyond which a run is discarded.
        trials: of each neural contestant.
        heldout_bytes: see plan.yaml.
    """

    budgets: list[float]
    sooner: list[float]
    seeds: int
    seeds_of_first: int
    overshoot: float
    trials: int
    heldout_bytes: int
    contestants: list[Entry] = field(default_factory=list)

    @classmethod
    def read(cls, *, quick: bool = False, path: Path = PLAN) -> Plan:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        numbers = {**raw, **(raw["quick"] if quick else {})}
        names = ("budgets", "sooner", "seeds", "seeds_of_first", "overshoot", "trials", "heldout_bytes")
        entries = [Entry(name, **options) for name, options in raw["contestants"].items()]
        entries = [entry for entry in entries if entry.name not in numbers.get("without", [])]
        return cls(**{name: numbers[name] for name in names}, contestants=entries)

    def only(self, names: list[str]) -> Plan:
        """With these contestants.

        Raises:
            InputError: one that is not there.
        """
        known = [entry.name for entry in self.contestants]
        if unknown := sorted(set(names) - set(known)):
            raise InputError(f"{unknown[0]} is not one of the contestants: {', '.join(known)}")
        return replace(self, contestants=[entry for entry in self.contestants if entry.name in names])

    def budgets_of(self, entry: Entry) -> list[float]:
        """What has no steps is run once, and ours at some more."""
        if not entry.is_neural:
            return self.budgets[:1]
        return sorted([*self.budgets, *(self.sooner if entry.name == OURS else [])])

    def number_of_trials(self, entry: Entry) -> int:
        """As many for each neural contestant."""
        return min(self.trials, len(entry.trials))
