"""Whether a model uses its context: one that does not is no subject for what adds to the context.

Shapes: N tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import store
from experiments.plans import Rules
from experiments.runs import Scores

GAINS = "entry.jsonl"
EARLY, LATE = range(8, 32), range(64, 128)  # positions within a block


def context_gain(scores: Scores) -> float:
    """Mean nats at the early positions of blocks less those at the late ones; not a number where a part is missing."""
    early, late = (scores.nats[np.isin(scores.in_block, part)] for part in (EARLY, LATE))
    return float(early.mean() - late.mean()) if len(early) and len(late) else float("nan")


def keep(folder: Path, seed: int, scores: Scores) -> None:
    """That of the model of a seed."""
    store.append(folder, {"seed": seed, "nats": context_gain(scores)}, GAINS)


def gain(folder: Path) -> float:
    """Mean over the seeds."""
    return float(np.mean(list({r["seed"]: r["nats"] for r in store.records(folder, GAINS)}.values())))


def has_subject(folder: Path, rules: Rules) -> bool:
    return not rules.least_gain or gain(folder) >= rules.least_gain


def told(folder: Path, rules: Rules) -> str:
    """A sentence for the page, and for who stops because of it."""
    if not store.records(folder, GAINS):
        return ""
    if np.isnan(gain(folder)):
        return f"**Blocks of {LATE.start} tokens or fewer do not say what a model gains from its context.**"
    said = (
        f"From positions {EARLY.start} to {EARLY.stop - 1} of a block to {LATE.start} to {LATE.stop - 1} the model "
        f"gains {gain(folder):.3f} nats on the text to choose on; at least {rules.least_gain:g} are asked for."
    )
    return said if has_subject(folder, rules) else f"{said} **So this experiment has no subject.**"


def proceed(folder: Path, rules: Rules, *, quick: bool) -> bool:
    """Print what was found; whether the arms are to run, which a quick run's always are."""
    print(told(folder, rules).replace("**", ""), flush=True)
    return quick or has_subject(folder, rules)
