"""Sections on the model of a plasticity run: costs, what it writes, learning rates, proofs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lightning_app.plasticity.report import chart_styles, costs
from lightning_app.plasticity.report.events import Evaluation, LearningRates, Proof, Rollback, TextSamples
from lightning_app.plasticity.report.facts import (
    baseline_and_now,
    unpruned,
)
from lightning_app.plasticity.report.proofs import limit_of
from lightning_app.plasticity.report.summary import measure
from lightning_app.reports.events import Cost
from lightning_app.reports.html import html
from lightning_app.reports.page import Section
from lightning_app.reports.parts import (
    Fold,
    Grid,
    Part,
    html_table,
    not_logged,
    note,
    number,
    percent,
    plain,
    samples_of,
)
from lightning_app.reports.record import Record
from lightning_app.reports.series import change, events

OPEN_PROMPTS = 2  # further ones are folded
HOLDS = {
    True: '<span class="good">\u2713 holds</span>',
    False: '<span class="bad">\u2717 does not hold</span>',
}


def _against(records: Sequence[Record]) -> list[Part]:
    """Baseline and now side by side, what each stage costs, and the charts of both."""
    base, now = baseline_and_now(records, Evaluation)
    cost, costs_now = baseline_and_now(records, Cost)
    pairs: tuple[tuple[str, str, Evaluation | Cost | None, Evaluation | Cost | None, str], ...] = (
        ("cross-entropy, nats per token", "ce", base, now, "{:.4f}"),
        ("the same, before the first pruning and now", "ce", unpruned(records), now, "{:.4f}"),
        ("perplexity", "ppl", base, now, "{:.3f}"),
        ("parameters", "parameters", cost, costs_now, "{:,.0f}"),
        ("bytes", "bytes", cost, costs_now, "{:,.0f}"),
        ("FLOPs per token", "flops_per_token", cost, costs_now, "{:,.0f}"),
        ("a forward, ms (CPU time; on a GPU wall time)", "latency_ms", cost, costs_now, "{:.3f}"),
    )
    rows = [
        [
            name,
            number(measure(one, key), spec),
            number(measure(two, key), spec),
            percent(change(measure(one, key), measure(two, key)), better=-1),
        ]
        for name, key, one, two, spec in pairs
    ]
    stages = [f"evaluated {chart_styles.stage_of(now)}"] if now else []
    stages += [f"measured {costs_now.stage}"] if costs_now else []
    caption = f"Baseline and now ({'; '.join(stages) or 'later stages not logged'})"
    parts: list[Part] = [html_table(caption, ("", "baseline", "now", "change"), rows, texts=(0,))]
    found = events(records, Cost)
    if not found:
        return [*parts, not_logged(["cost"])]
    rows = [
        [
            str(one.stage),
            *(number(x, "{:,.0f}") for x in (one.parameters, one.bytes, one.flops_per_token)),
            number(one.latency_ms, "{:.3f}"),
            Markup(" to ").join(number(x, "{:.3f}") for x in one.latency_spread or (None,)),
            "\u2013" if one.stage == "baseline" else number(one.measured, "{:.3f}"),
            "\u2013" if one.stage == "baseline" else number(one.ceiling, "{:.3f}"),
        ]
        for one in found
    ]
    names = ("stage", "parameters", "bytes", "FLOPs per token", "latency, ms", "spread, ms", "speed-up", "ceiling")
    table = html_table("What each stage costs", names, rows, texts=(0,))
    told = note(
        "Speed-up: latency of the baseline over that of the stage, as measured. Ceiling: the one that the FLOPs allow."
    )
    return [*parts, Grid(costs.costs(records), wide=True), table, told]


def _samples(records: Sequence[Record]) -> list[Part]:
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for one in events(records, TextSamples):
        for text in one.texts or []:
            by_prompt.setdefault(str(text.prompt), []).append((str(one.stage), str(text.text)))
    return [samples_of(prompt, texts, opened=i < OPEN_PROMPTS) for i, (prompt, texts) in enumerate(by_prompt.items())]


def _rates(records: Sequence[Record]) -> list[Part]:
    rows = [
        [
            f"{one.step:,}",
            str(group.name),
            number(group.lr, "{:.3g}"),
            number(group.factor, "{:.4g}"),
        ]
        for one in events(records, LearningRates)
        for group in one.groups or []
    ]
    table = html_table(
        "Learning rate of each group where it was set", ("step", "group", "rate", "factor"), rows, texts=(1,)
    )
    fold: list[Part] = [Fold(f"{len(rows)} rates of groups as a table", [table], opened=True)] if rows else []
    found = costs.rates(records)
    return [*found, *fold] if found else []


def _proofs(records: Sequence[Record]) -> list[Part]:
    found = [(one, *check) for one in events(records, Proof) for check in (one.checks or {}).items()]
    rows = [
        [plain(one.cycle), f"{one.step:,}", name, _check(value), limit_of(name) or "\u2013"]
        for one, name, value in found
    ]
    heads = ("cycle", "step", "check", "result", "limit")
    proofs = html_table("What was proved after each change", heads, rows, texts=(2, 4))
    undone = [
        [
            plain(one.cycle),
            f"{one.step:,}",
            number(one.ce),
            number(one.limit),
            one.reason or "",
        ]
        for one in events(records, Rollback)
    ]
    names = ("cycle", "step", "cross-entropy", "limit", "why")
    none = note("No rollback in this log.")
    return [
        *([_proved([value for *_, value in found]), proofs] if rows else [not_logged(["proof"])]),
        html_table("Rollbacks", names, undone, texts=(4,)) if undone else none,
    ]


def _proved(values: Sequence[Any]) -> str:
    """The verdict. Only what holds is logged, since a check that fails ends the run; older logs have False."""
    passed = sum(value is not False for value in values)
    kind = "good" if passed == len(values) else "bad"
    return html('<p class="lead"><strong class="{}">{} of {} checks passed.</strong></p>', kind, passed, len(values))


def _check(value: Any) -> str:
    if isinstance(value, bool):
        return Markup(HOLDS[value])
    return plain(value)


AGAINST = Section("against", "Baseline against now", (), _against)
SAMPLES = Section("samples", "Text samples", ("text_samples",), _samples)
RATES = Section("learning-rates", "Learning rates", ("lr", "learning_rates"), _rates)
PROOFS = Section("proofs", "Proofs and rollbacks", (), _proofs)
