"""From the results of experiments.continual_lora to its part of docs/art.md."""

from __future__ import annotations

import json
from pathlib import Path

from experiments import entry, plans, store
from experiments.arguments import name_of
from experiments.arms import PLAIN
from experiments.forgetting import Continual, with_spread
from experiments.levels import LEVEL
from experiments.tables import table

PLAN = "plan.json"


def parts(folder: Path) -> list[str]:
    """Sections of the page, of the newest plan; none without results."""
    found = sorted((folder / "lora").glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)
    if not found or not entry.told(found[-1].parent, rules := _rules(found[-1])):
        return []
    mine, plan = found[-1].parent, json.loads(found[-1].read_text(encoding="utf-8"))
    continual = Continual.of(mine)
    arms = [_setting(plan), _arms(continual)] if PLAIN in continual.by_arm else []
    told = plans.told(mine, rules, list(continual.by_arm)).replace("### Plan", "Its plan:")
    return [f"### {name_of(plan['model'])}, by LoRA", entry.told(mine, rules), *arms, told]


def _rules(path: Path) -> plans.Rules:
    return plans.Rules(**json.loads(path.read_text(encoding="utf-8"))["rules"])


def _setting(plan: store.Record) -> str:
    training = plan["training"]
    return (
        f"Adapters of rank 8 learn the second domain in {training['steps']} steps of {training['batch_size']} x "
        f"{training['block_size']} tokens, in bf16 where the CPU has it; {plan['blocks']} windows of each domain are "
        f"scored. Samples: {plan['samples']} of {plan['of_sample']} tokens. The first domain is what the model knew; "
        "replay takes TRAIN for it."
    )


def _arms(found: Continual) -> str:
    head = [
        *("arm", "learning rate, strength", "first domain: before", "forgets less than plain, % [95 %]", "at the end"),
        *("second domain: before", "at the end", "CPU s", "before it, CPU s"),
    ]
    note = f"Bits per byte; compared {LEVEL}."
    return "\n\n".join([table(head, (_row(found, arm) for arm in found.by_arm)), note])


def _row(found: Continual, arm: str) -> list[str]:
    record, less = found.by_arm[arm][0], found.less(arm, PLAIN)
    return [
        arm,
        f"{record['lr']:g}" + (f", {record['strength']:g}" if record["strength"] else ""),
        f"{found.mean(arm, 'first')[0]:.3f}",
        "" if arm == PLAIN else "not at the level" if less is None else str(less),
        with_spread(found.ends(arm, "first")),
        f"{found.mean(arm, 'second')[0]:.3f}",
        with_spread(found.ends(arm, "second")),
        f"{float(found.mean(arm, 'train_seconds')):.0f}",
        f"{float(found.mean(arm, 'setup_seconds')):.0f}",
    ]
