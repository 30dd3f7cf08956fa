"""What is fixed before an experiment's first run, in experiments/plans, and what its page says of that.

A plan that was committed before the first run cannot have been made for its results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from experiments import store
from experiments.arguments import digests
from lightning_app.errors import InputError

PLANS = Path(__file__).parent / "plans"
RUNS = "runs.jsonl"  # in the folder of the results: when it was run, and by which commit of the plan
SEEDS = ("seeds",)  # a seed more is no other plan
BESIDE = {"runs": RUNS, "gains": store.GAINS}  # in the first line of published results


@dataclass(frozen=True)
class Rules:
    """The plan of an experiment.

    Attributes:
        name: of its file in experiments/plans.
        question, primary: what is asked, and the measure that answers it.
        seeds: of all arms.
        least_gain: nats that a model must gain from its context to be a subject; 0: any is.
        steps: of a training at most.
        validations, patience: how often in these, and how many in a row may be no better before it ends; 0: never.
        cpu_hours: budget of the whole experiment.
        margins: per cent that may be lost, by what may lose it.
        trials: of each arm; 0: arms choose in ways of their own.
    """

    name: str
    question: str
    primary: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    least_gain: float
    steps: int
    validations: int
    patience: int
    cpu_hours: float
    margins: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0

    @property
    def path(self) -> Path:
        return PLANS / f"{self.name}.yaml"

    @property
    def shown(self) -> str:
        return f"experiments/plans/{self.name}.yaml"


def read(name: str) -> Rules:
    """From the file of this name."""
    found = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    return Rules(name, **found | {key: tuple(found[key]) for key in ("arms", "seeds")})


def fingerprint(plan: Any, *others: Any, texts: Sequence[str | None] = (), leaving: Sequence[str] = SEEDS) -> str:
    """Of all options of a plan, with its rules and the content of the texts."""
    plain = {key: value for key, value in asdict(plan).items() if key not in leaving}
    plain["rules"] = {key: value for key, value in plain["rules"].items() if key not in SEEDS}
    return hashlib.sha256(json.dumps([plain, digests(texts), *others], sort_keys=True).encode()).hexdigest()[:12]


# Commits


@dataclass(frozen=True)
class Change:
    """When a plan's file was last changed.

    Attributes:
        commit: empty where there is none.
        whole: whether the file is as that commit has it.
    """

    commit: str
    whole: bool


def last_change(path: Path) -> Change:
    commit = _git("log", "-1", "--format=%h", "--", path.name, folder=path.parent)
    changes = _git("status", "--porcelain", "--", path.name, folder=path.parent)
    return Change(commit, whole=bool(commit) and not changes)


def commit() -> str:
    """Of this code, for a page."""
    found = _git("rev-parse", "--short", "HEAD", folder=Path(__file__).parent)
    return f"`{found}`" if found else "unknown"


def _git(*words: str, folder: Path) -> str:
    """What git says; nothing where it fails."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", cwd=folder)
    except FileNotFoundError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# Runs


def add_allowance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-uncommitted", action="store_true", help="run with a plan that is not committed; the page says so"
    )


def add_go_on(parser: argparse.ArgumentParser) -> None:
    """For an experiment whose published results are all that it goes on from."""
    parser.add_argument("--go-on", metavar="FILE", help="published results of the same plan and texts, to go on from")


def begin_as(options: argparse.Namespace, folder: Path, rules: Rules) -> None:
    """`begin` as the command line says."""
    allowed, published = options.allow_uncommitted, getattr(options, "go_on", None)
    begin(folder, rules, quick=options.quick, allow_uncommitted=allowed, published=published)


def begin(
    folder: Path, rules: Rules, *, quick: bool, allow_uncommitted: bool, published: str | Path | None = None
) -> None:
    """Keep by which commit of the plan a run is.

    Args:
        published: results that an empty folder begins with.

    Raises:
        InputError: the plan is not committed, and the run is to count; or what is published is of another plan.
    """
    change = last_change(rules.path)
    if not (change.whole or quick or allow_uncommitted):
        raise InputError(
            f"{rules.shown} is not committed as it is: a plan counts if it is older than its results. Commit it, or "
            "give --allow-uncommitted, and the page says so"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if published is not None:
        _take_in(folder, Path(published))
    at = datetime.now(UTC).isoformat(timespec="seconds")
    run = {"plan": change.commit, "committed": change.whole, "quick": quick, "code": commit(), "at": at}
    store.append(folder, run, RUNS)


def _take_in(folder: Path, path: Path) -> None:
    """Published results, so that another machine goes on from them; a folder that has results keeps its own."""
    plan, *results = store.records(path.parent, path.name) or [{}]
    if plan.get("fingerprint") != folder.name:
        raise InputError(
            f"{path} has no results of this plan and these texts (their fingerprint is {folder.name}, that of the file "
            f"{plan.get('fingerprint', 'missing')}): leave --go-on out to begin anew"
        )
    if store.records(folder):
        return
    for name, file in BESIDE.items():
        store.write(folder, plan[name], file)
    store.write(folder, [{"cpu_seconds": 3600 * plan["cpu_hours"]}], store.SECONDS)
    store.write(folder, results)


# The page, and the results beside it


def publish(folder: Path, rules: Rules, path: Path, parts: Sequence[str] = ()) -> None:
    """All results, and those of the parts that have folders of their own, behind a line with their plan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = {name: store.records(folder, file) for name, file in BESIDE.items()}
    hours = round(store.cpu_hours(folder), 3)
    plan = {"plan": asdict(rules), "fingerprint": folder.name, **beside, "cpu_hours": hours}
    found = [record for part in (folder, *(folder / name for name in parts)) for record in store.records(part)]
    store.write(path.parent, [plan, *found], path.name)


def told(folder: Path, rules: Rules, ran: Sequence[str]) -> str:
    """A section of the page: the plan, its commit, and what differs from it."""
    rows = {
        "question": rules.question,
        "primary measure": rules.primary,
        "seeds": ", ".join(map(str, rules.seeds)),
        "steps": (f"{rules.steps:,} at most" if rules.patience else f"{rules.steps:,}") if rules.steps else "",
        "a training ends": _stop(rules),
        "trials of each arm": str(rules.trials or ""),
        "CPU hours": f"{store.cpu_hours(folder):.2f} of {rules.cpu_hours:g}, over all runs",
        "not worse": ", ".join(f"{name}: up to {margin:g} % more" for name, margin in rules.margins.items()),
    }
    table = ["| plan | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items() if text)]
    return "\n".join(
        [
            "### Plan",
            "",
            " ".join(_origin(folder, rules)),
            *_other_arms(rules, ran),
            *_other_seeds(folder, rules),
            "",
            *table,
        ]
    )


def _stop(rules: Rules) -> str:
    if not rules.patience:
        return "after all steps" if rules.steps else ""
    return f"when {rules.patience} of its {rules.validations} validations in a row are no better, or after all steps"


def _origin(folder: Path, rules: Rules) -> list[str]:
    """By which commit of the plan the results are."""
    runs, now = store.records(folder, RUNS), last_change(rules.path)
    said = [f"The plan is `{rules.shown}`, last changed at commit {f'`{now.commit}`' if now.commit else 'unknown'}."]
    if any(run["quick"] for run in runs):
        said.append("**This was a run in small, to see that it runs: it has other seeds and steps than the plan.**")
    if not all(run["committed"] for run in runs):
        said.append("**It was not committed when the results were made.**")
    others = sorted({run["plan"] for run in runs} - {now.commit})
    if others:
        said.append(f"**Some results are of other commits of it: {', '.join(others)}.**")
    if runs and not others and all(run["committed"] for run in runs):
        said.append(f"It was committed before the first run ({runs[0]['at'][:10]}), and all results are of it.")
    return said


def _other_arms(rules: Rules, ran: Sequence[str]) -> list[str]:
    """Arms that were planned and not run, and the other way round."""
    missing = [arm for arm in rules.arms if arm not in ran]
    more = [arm for arm in dict.fromkeys(ran) if arm not in rules.arms]
    said = [f"**Planned and not run: {', '.join(missing)}.**"] if missing else []
    return said + ([f"**Run and not planned: {', '.join(more)}.**"] if more else [])


def _other_seeds(folder: Path, rules: Rules) -> list[str]:
    """Seeds that were planned and not run, and the other way round; nothing where results have none."""
    ran = {record["seed"] for record in store.records(folder) if "seed" in record}
    missing, more = (sorted(some) for some in (set(rules.seeds) - ran, ran - set(rules.seeds)))
    said = [f"**Seeds planned and not run: {', '.join(map(str, missing))}.**"] if ran and missing else []
    return said + ([f"**Seeds run and not planned: {', '.join(map(str, more))}.**"] if more else [])
