"""From the results of experiments.plasticity_smollm2 to its section of docs/plasticity.md.

Shapes: S seeds, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plans, plasticity_page, sections
from experiments.arguments import name_of, told
from experiments.statistics import HOW, Interval, change
from experiments.store import Record, records
from experiments.tables import table

SECTION = "## A pretrained model"
RESULTS = "plasticity_smollm2.jsonl"
UNPRUNED, WHOLE, TIMES = "unpruned", "unpruned, untrained", "times"
TARGET, AIM = "10% of groups, Taylor", 1.0  # per cent
SHARE = 0.75  # of the time that FLOPs allow to be saved


class Results:
    """Records of all arms and seeds in a folder."""

    def __init__(self, folder: Path):
        self.arms: dict[str, dict[int, Record]] = {}
        for record in records(folder):
            self.arms.setdefault(record["arm"], {})[record["seed"]] = record
        self.times: dict[str, dict[str, float]] = {}
        for record in self.arms.pop(TIMES, {}).values():
            self.times = record["levels"]

    def bits(self, arm: str) -> float:
        """Per byte, the mean over the seeds."""
        found = self.arms[arm].values()
        return float(np.mean([np.sum(record["test"]) / np.sum(record["scale"]) for record in found]))

    def against(self, arm: str, base: str) -> Interval:
        """Per cent more bits per byte, over the seeds that both have; a model that is not trained has no seed."""
        mine, others = self.arms[arm], self.arms[base]
        seeds = sorted(mine if base == WHOLE else set(mine) & set(others))
        of_base = [next(iter(others.values())) if base == WHOLE else others[seed] for seed in seeds]
        return change(np.array([mine[seed]["test"] for seed in seeds]), np.array([r["test"] for r in of_base]))

    def of_each_seed(self, arm: str) -> list[float]:
        """Per cent more bits per byte than the whole model before any training."""
        whole = np.sum(next(iter(self.arms[WHOLE].values()))["test"])
        return [100 * float(np.sum(self.arms[arm][seed]["test"]) / whole - 1) for seed in sorted(self.arms[arm])]


def write(folder: Path, plan: dict[str, Any], out: Path, *, command: str) -> str:
    """The section of `out`/plasticity.md, which is also printed; `out`/results has the records."""
    results, rules = Results(folder), plans.Rules(**plan["rules"])
    ran = [*results.arms]
    parts = [
        SECTION,
        _setting(plan, command),
        _targets(results, rules.margins),
        _recovery(results),
        _untrained(results),
        _amounts(results),
        _times(results),
        plans.told(folder, rules, ran),
    ]
    page = "\n\n".join(part for part in parts if part) + "\n"
    sections.put(out / "plasticity.md", SECTION, page, before=plasticity_page.SECTION)
    plans.publish(folder, rules, out / "results" / RESULTS)
    return page


def _setting(plan: dict[str, Any], command: str) -> str:
    scored, training = told(plan)[1], plan["training"]
    return (
        f"Written by `{command}` at commit {plans.commit()}. Units of {name_of(plan['model'])} go, in bf16 where the "
        f"processor has it: key-value groups, and neurons in multiples of 32. Importance is measured on "
        f"{plan['tokens']:,} tokens of {name_of(plan['train'])}, which LoRA (r {plan['lora']['r']}) trains on for "
        f"{training['steps']} steps of {training['block_size']} tokens; up to {plan['scored']:,} tokens of {scored} "
        f"are scored, in windows of {plan['block']}. Seeds: {', '.join(map(str, plan['seeds']))}. {HOW}"
    )


def _targets(results: Results, margins: Mapping[str, float]) -> str:
    """Each, told by code as met or missed."""
    rows = []
    for arm, margin in margins.items():
        if arm in results.arms and UNPRUNED in results.arms:
            found = results.against(arm, UNPRUNED)
            for within in (margin, AIM):
                said = {"yes": "met", "no": "**missed**", "undecided": "undecided"}[found.not_worse(within)]
                what = "" if within == margin else " (aim)"
                rows.append(
                    [f"{arm}: within {within:g} % of unpruned with the same training{what}", f"{found} %", said]
                )
    for cut, one in results.times.items():
        saved, allowed = _saved(one["speedup"]), _saved(one["ceiling"])
        said = f"{saved:.1f} % of the time, FLOPs allow {allowed:.1f} %"
        met = "met" if saved >= SHARE * allowed else "**missed**"
        rows.append([f"{cut}: at least {SHARE:g} of the time that FLOPs allow to be saved", said, met])
    return "### Targets\n\n" + table(["target", "measured", ""], rows) if rows else ""


def _saved(faster: float) -> float:
    """Per cent of the time."""
    return 100 * (1 - 1 / faster)


def _recovery(results: Results) -> str:
    arms = [arm for arm in results.arms if not arm.endswith("untrained")]
    if UNPRUNED not in arms:
        return ""
    rows = []
    for arm in arms:
        found = list(results.arms[arm].values())
        sizes = [f"{np.mean([r[name] for r in found]):,.0f}" for name in ("heads", "neurons", "parameters")]
        seconds = f"{np.mean([r['training_seconds'] for r in found]):.0f}"
        change = "" if arm == UNPRUNED else str(results.against(arm, UNPRUNED))
        rows.append([arm, f"{results.bits(arm):.4f}", change, *sizes, seconds])
    note = (
        "Against the unpruned model with the same training. `taught`: the loss is half the cross-entropy and half "
        "4 KL(teacher || student) at temperature 2, the teacher being the unpruned model as it was. Parameters without "
        "those of LoRA."
    )
    heads = ["arm", "bits per byte", "change, %", "groups", "neurons", "parameters", "CPU s"]
    return f"### After training with LoRA\n\n{note} {_teaching(results)}\n\n{table(heads, rows)}"


def _teaching(results: Results) -> str:
    """What a teacher changes, cut by cut."""
    pairs = [(arm, arm.removesuffix(", taught")) for arm in results.arms if arm.endswith(", taught")]
    said = [f"{results.against(arm, base)} % at {base}" for arm, base in pairs if base in results.arms]
    return f"With a teacher, against without one: {'; '.join(said)}." if said else ""


def _untrained(results: Results) -> str:
    arms = [arm for arm in results.arms if arm.endswith("untrained") and arm != WHOLE and " tokens" not in arm]
    if WHOLE not in results.arms or not arms:
        return ""
    rows = [["unpruned", f"{results.bits(WHOLE):.4f}", ""]]
    rows += [
        [arm.removesuffix(", untrained"), f"{results.bits(arm):.4f}", str(results.against(arm, WHOLE))] for arm in arms
    ]
    note = "Of one seed, since nothing but the sample and the draw depends on it."
    return f"### Before training\n\n{note}\n\n{table(['arm', 'bits per byte', 'change, %'], rows)}"


def _amounts(results: Results) -> str:
    """How much text importance needs."""
    arms = [arm for arm in results.arms if " tokens" in arm]
    if WHOLE not in results.arms or not arms:
        return ""
    rows = []
    for arm in arms:
        each = ", ".join(f"{found:+.2f}" for found in results.of_each_seed(arm))
        rows.append([arm.removesuffix(", untrained"), str(results.against(arm, WHOLE)), each])
    note = "Before training, per cent more bits per byte than unpruned; each seed draws other windows to measure on."
    return f"### How much text importance needs\n\n{note}\n\n{table(['arm', 'change, %', 'seed by seed'], rows)}"


def _times(results: Results) -> str:
    if not results.times:
        return ""
    rows = [[cut, f"{one['speedup']:.2f}", f"{one['ceiling']:.2f}"] for cut, one in results.times.items()]
    note = (
        "How many times faster a forward of one window is than that of the whole model, in fp32, both in turns in one "
        "process; and how many times faster FLOPs allow it to be."
    )
    return f"### Time\n\n{note}\n\n{table(['gone', 'faster', 'ceiling'], rows)}"
