"""What the experiment on storing found, for the page of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.storing import OF_ATTENTION, RULES, arm

if TYPE_CHECKING:
    from experiments.report import Results
    from experiments.statistics import Interval

SMALL = 256  # entries: up to here what is kept is asked to matter


def section(results: Results, budgets: Sequence[int], of_attention: Sequence[int]) -> str:
    """A table of rules by budgets, and what follows from it; nothing where it was not run."""
    run = [size for size in budgets if all(results.by_arm[arm(rule, size)] for rule in RULES)]
    if not run:
        return ""
    head = [
        f"| entries | {' | '.join(RULES)} | surprise to recency | learned to recency |",
        f"| --- |{' --- |' * (len(RULES) + 2)}",
    ]
    rows = [_row(results, size) for size in run]
    note = (
        "Change of bits per byte to no memory, in %, and in the last columns to recency under the same budget [95 %]. "
        "The cache of the model without memory has so many entries of each document, and what its own block has seen; "
        "weight and theta are each arm's. Surprise is the nats of the token that followed, less a decay with age that "
        "it alone has to choose; the learned score starts as it, adds a linear function of the state, and is taught by "
        "the cross-entropy of the mixture on the text to choose on. It is of this experiment alone: no reader has it."
    )
    return "\n".join(
        ["### What to store", "", *head, *rows, "", note, "", *_said(results, run), *_attention(results, of_attention)]
    )


def _row(results: Results, size: int) -> str:
    plain = [f"{results.change(arm(rule, size), 'no memory').mean:+.2f}" for rule in RULES]
    return f"| {' | '.join([f'{size:,}', *plain, *(str(_to_recency(results, rule, size)) for rule in RULES[2:])])} |"


def _to_recency(results: Results, rule: str, size: int) -> Interval:
    return results.change(arm(rule, size), arm("recency", size))


def _said(results: Results, run: Sequence[int]) -> list[str]:
    """For each small budget whether it matters what is kept."""
    said = []
    for size in [size for size in run if size <= SMALL]:
        better = [rule for rule in RULES[2:] if _to_recency(results, rule, size).high < 0]
        who = " and ".join(better).capitalize() if better else "Neither surprise nor the learned score"
        said.append(f"{who} {'beat' if len(better) != 1 else 'beats'} recency with {size} entries.")
    return [" ".join(said).replace("score beat ", "score beats ")] if said else []


def _attention(results: Results, budgets: Sequence[int]) -> list[str]:
    run = [size for size in budgets if all(results.by_arm[arm(rule, size, "attention ")] for rule in OF_ATTENTION)]
    pairs = {size: [arm(rule, size, "attention ") for rule in ("learned", "recency")] for size in run}
    said = [f"{results.change(*pair)} % with {size} entries" for size, pair in pairs.items()]
    sentence = "The arm `attention` with its own learned score, to itself with recency: " + "; ".join(said) + "."
    return ["", sentence] if run else []
