"""Sections on the cycles of a plasticity run: when what happened, and what it cost and won back."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_app.plasticity.report import losses, timeline
from lightning_app.plasticity.report.chart_styles import PHASES, SHOWN
from lightning_app.plasticity.report.events import Evaluation, Stabilised
from lightning_app.plasticity.report.facts import (
    baseline_and_now,
    cycles,
    evaluations,
    phases,
)
from lightning_app.plasticity.report.summary import measure
from lightning_app.reports.html import html, part
from lightning_app.reports.page import Section
from lightning_app.reports.parts import Fold, Grid, Part, html_table, not_logged, note, number, percent, plain
from lightning_app.reports.record import Record
from lightning_app.reports.series import change, events

KEY = ("training", "warmup", "analysis", "pruning", "regrowth", "finetuning")


def _timeline(records: Sequence[Record]) -> list[Part]:
    also = {"analysis": ", evaluation"}
    items = [(SHOWN.get(name, name) + also.get(name, ""), PHASES[name][1:]) for name in KEY]
    key = part("key", "Colours of the phases", items)
    rows = [[SHOWN.get(p.name, p.name), f"{p.cycle}", f"{p.start:,}", f"{p.end:,}", p.reason] for p in phases(records)]
    table = html_table("Phases", ("phase", "cycle", "from step", "to step", "why it began"), rows, texts=(0, 4))
    fold = Fold(f"{len(rows)} phases as a table", [table])
    return [key, timeline.timeline(records), fold] if rows else [timeline.timeline(records)]


def _stabilisation(records: Sequence[Record]) -> list[Part]:
    found = events(records, Stabilised)
    return [Grid(losses.stabilisations(records), [_why(one) for one in found])] if found else []


def _why(one: Stabilised) -> str:
    """Why the rule fired, and whatever else the event carries."""
    fields = ", ".join(
        f"{name} {plain(value)}{' steps' * (name == 'after')}"
        for name, value in one.content().items()
        if name not in ("cycle", "losses", "stable", "reason") and value is not None
    )
    stable = one.stable
    word = "stable" if stable else "stability not logged" if stable is None else "not stable, went on regardless"
    reason = one.reason or ""
    why = f"{reason} ({fields})" if reason and fields else reason or fields or "no reason logged"
    return html('<p class="why"><span class="{}">{}</span>: {}</p>', "good" if stable else "warn", word, why)


def _finetuning(records: Sequence[Record]) -> list[Part]:
    found = losses.finetunings(records)
    if not found:
        return []
    return [
        note("Lines: the run\u2019s own losses. Diamonds: the evaluations, on their seeded sample."),
        Grid(found, wide=True),
    ]


def _impact(records: Sequence[Record]) -> list[Part]:
    if not evaluations(records):
        return []
    base, _ = baseline_and_now(records, Evaluation)
    ce = measure(base, "ce")
    rows = [
        [
            f"{one.cycle}" + (" (rolled back)" if one.rolled_back else ""),
            number(one.before),
            number(one.pruned),
            "\u2013" if one.regrown is None else number(one.regrown),
            percent(one.impact, better=-1),
            number(one.recovered),
            percent(one.left, better=-1),
            percent(change(ce, one.recovered), better=-1),
        ]
        for one in cycles(records)
    ]
    names = ("cycle", "before", "pruned", "regrown", "impact", "fine-tuned", "left after it", "against the baseline")
    table = html_table("Cross-entropy of each cycle, nats per token", names, rows)
    return [losses.impact(records), table if rows else "", "" if ce else not_logged(["evaluation of stage baseline"])]


TIMELINE = Section("phases", "Timeline", (), _timeline)
STABILISATION = Section("stabilisation", "Stabilisation", ("stabilised",), _stabilisation)
FINETUNING = Section("fine-tuning", "Fine-tuning", ("phase_transition to finetuning",), _finetuning)
IMPACT = Section("impacts", "Impact and recovery", ("evaluation",), _impact)
