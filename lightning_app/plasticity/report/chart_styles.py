"""What the charts of a plasticity run have in common: names and colours of phases, events and stages."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_app.plasticity.report.events import (
    Analysis,
    Evaluation,
    Pruning,
    Regrowth,
    Rollback,
    Stabilised,
)
from lightning_app.reports.figures import Trace, dots, label

PHASES = {  # name of a phase, and the colour that it has everywhere
    "training": "@training",
    "warmup": "@warmup",
    "analysis": "@analysis",
    "pruning": "@pruning",
    "regrowth": "@regrowth",
    "finetuning": "@finetuning",
    "evaluation": "@analysis",
}

SHOWN = {"finetuning": "fine-tuning"}  # other names are shown as they are

Marked = Stabilised | Analysis | Pruning | Regrowth | Rollback

MARKS: dict[type[Marked], tuple[str, str, str]] = {  # with a vertical line: what they are called, their colour and sign
    Stabilised: ("stabilised", "@warmup", "diamond"),
    Analysis: ("analysed", "@analysis", "circle"),
    Pruning: ("pruned", "@pruning", "triangle-down"),
    Regrowth: ("regrown", "@regrowth", "triangle-up"),
    Rollback: ("rolled back", "@rollback", "x"),
}

STAGES = {  # of an evaluation
    "baseline": "@ink",
    "warmup": "@warmup",
    "before": "@analysis",
    "pruned": "@pruning",
    "regrown": "@regrowth",
    "finetuning": "@finetuning",
    "recovered": "@finetuning",
}


def stage_of(one: Evaluation) -> str:
    """The stage of an evaluation, with its cycle."""
    return label(one.stage) + (f", cycle {one.cycle}" if one.cycle else "")


def when(one: Stabilised | Analysis) -> str:
    return f"Cycle {'?' if one.cycle is None else one.cycle}, step {one.step:,}"


def scores(found: Sequence[Evaluation], key: str = "ce", *, symbol: str = "diamond") -> Trace:
    """Evaluations on the seeded sample, coloured by stage."""
    marker = {"color": [STAGES.get(str(one.stage), "@ink") for one in found], "symbol": symbol, "size": 8}
    x, y = [one.step for one in found], [getattr(one, key) for one in found]
    trace = dots(f"evaluation/{key}", x, y, "@ink", marker=marker)
    return trace | {"text": [stage_of(r) for r in found], "hovertemplate": "%{text}: %{y}<extra></extra>"}
