"""Whether a model uses its context: one that does not is no subject for what adds to the context.

Shapes: N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments import store
from experiments.plans import Rules
from experiments.runs import Scores, read
from experiments.store import GAINS
from lightning_app.data.batch import Batch
from lightning_app.memory.model import MemoryLM

EARLY, LATE = range(8, 32), range(64, 128)  # positions within a block


def context_gain(scores: Scores) -> float:
    """Mean nats at the early positions of blocks less those at the late ones; not a number where a part is missing."""
    early, late = (scores.nats[np.isin(scores.in_block, part)] for part in (EARLY, LATE))
    return float(early.mean() - late.mean()) if len(early) and len(late) else float("nan")


def gain_on_the_same_tokens(model: MemoryLM, blocks: Sequence[Batch]) -> float:
    """As `context_gain`, but the tokens at the late positions are predicted again, with as little context as at the
    early ones: in a short text other tokens are harder by more than a context is worth.

    Args:
        blocks: (1, T) each; what is behind the late positions is left out.

    Returns: nats; not a number where blocks have no late positions.
    """
    parts = [part for block in blocks for part in _with_less_context(block)]
    if not parts:
        return float("nan")
    whole, again = read(model, [_part(block, 0, LATE.stop) for block in blocks]), read(model, parts)
    late, early = whole.nats[whole.in_block >= LATE.start], again.nats[again.in_block >= EARLY.start]
    return float(early.mean() - late.mean())


def _with_less_context(block: Batch) -> Iterator[Batch]:
    """Parts in which the late positions of the block are the early ones; the last part is cut where the block ends."""
    for start in range(LATE.start - EARLY.start, LATE.stop - EARLY.start, len(EARLY)):
        if (part := _part(block, start, min(start + EARLY.stop, LATE.stop))).input_ids.shape[1] > EARLY.start:
            yield part


def _part(block: Batch, start: int, stop: int) -> Batch:
    return block.each(lambda column: column[:, start:stop])


def keep(folder: Path, seed: int, nats: float) -> None:
    """What the model of a seed gains."""
    store.append(folder, {"seed": seed, "nats": nats}, GAINS)


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
        f"With {LATE.start} to {LATE.stop - 1} tokens of context in place of {EARLY.start} to {EARLY.stop - 1} the "
        f"model gains {gain(folder):.3f} nats on the text to choose on; at least {rules.least_gain:g} are asked for."
    )
    return said if has_subject(folder, rules) else f"{said} **So this experiment has no subject.**"


def proceed(folder: Path, rules: Rules, *, quick: bool) -> bool:
    """Print what was found; whether the arms are to run, which a quick run's always are."""
    print(told(folder, rules).replace("**", ""), flush=True)
    return quick or has_subject(folder, rules)
