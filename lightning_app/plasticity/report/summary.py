"""The first section of a plasticity run's page: what was reached, in one sentence and a few tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from lightning_app.plasticity.report import chart_styles
from lightning_app.plasticity.report.events import (
    Evaluation,
    PhaseTransition,
    PlasticityStarted,
    Proof,
    Pruning,
    Rollback,
)
from lightning_app.plasticity.report.facts import (
    baseline_and_now,
    living,
    unpruned,
)
from lightning_app.reports.events import Cost, end_of
from lightning_app.reports.html import html, part
from lightning_app.reports.page import Section
from lightning_app.reports.parts import Part, note, number, percent, si
from lightning_app.reports.record import Record
from lightning_app.reports.series import change, events, last_step, series

SAME = 0.01  # a relative rise of the cross-entropy up to which the verdict is a good one


def _summary(records: Sequence[Record]) -> list[Part]:
    base, now = baseline_and_now(records, Evaluation)
    history = living(records)
    cost, costs_now = baseline_and_now(records, Cost)
    pruned = events(records, Pruning)
    verdict, kind = _verdict(unpruned(records), now) if pruned else ("No pruning was logged.", "")
    tiles = [
        ("State", _state(records), f"step {last_step(records):,}"),
        ("Heads alive", *_tile(_first(history), _last(history), "{:,.0f}")),
        ("Cross-entropy", *_tile(measure(base, "ce"), measure(now, "ce"), "{:.4f}", better=-1)),
        ("Perplexity", *_tile(measure(base, "ppl"), measure(now, "ppl"), "{:.2f}", better=-1)),
        ("Parameters", *_tile(measure(cost, "parameters"), measure(costs_now, "parameters"), si)),
        ("FLOPs per token", *_tile(measure(cost, "flops_per_token"), measure(costs_now, "flops_per_token"), si)),
        ("Latency, ms", *_tile(measure(cost, "latency_ms"), measure(costs_now, "latency_ms"), _short, better=-1)),
    ]
    parts: list[Part] = [
        html('<p class="lead">{} <strong class="{}">{}</strong></p>', _sentence(records), kind, verdict),
        part("tiles", tiles),
    ]
    started = events(records, PlasticityStarted)
    if grouped := [one.query_heads for one in started if (one.query_heads or 1) > 1]:
        parts.append(
            note(f"Heads are key-value groups here, of {grouped[0]} query heads each: nothing smaller can be cut out.")
        )
    if not started:
        parts.insert(
            0,
            Markup(
                '<p class="missing">not logged: plasticity_started. No plasticity in this log: the sections '
                "below that need it say so, and the training curves are all there is.</p>"
            ),
        )
    broken = [one for one in events(records, Proof) if any(x is False for x in (one.checks or {}).values())]
    if broken:
        where = ", ".join(f"step {one.step:,}" for one in broken)
        link = Markup('<a href="#proofs">the proofs</a>')
        parts.insert(0, html('<p class="bad">A proof does not hold ({}): see {}.</p>', where, link))
    if base and now and now.step > base.step:
        more = now.step - base.step
        parts.append(
            note(
                f"{more:,} optimizer steps lie between the baseline and the model of now. Whether pruning or those "
                "steps changed the loss, only a run of as many steps without pruning can tell."
            )
        )
    return parts


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def measure(event: Evaluation | Cost | None, name: str) -> float | None:
    """A number of an event, where both are there."""
    found: float | None = getattr(event, name) if event else None
    return found


def _first(history: Sequence[Any]) -> int | None:
    return history[0].count if history else None


def _last(history: Sequence[Any]) -> int | None:
    return history[-1].count if history else None


def _tile(
    before: float | None, now: float | None, spec: str | Callable[[float], str], *, better: int = 0
) -> tuple[str, str]:
    """Value and the line below it."""
    form = spec.format if isinstance(spec, str) else spec
    if now is None:
        return (number(None), "") if before is None else (form(before), "baseline; later ones not logged")
    if before is None:
        return form(now), "baseline not logged"
    return f"{form(before)} \u2192 {form(now)}", percent(change(before, now), better=better)


def _sentence(records: Sequence[Record]) -> str:
    """What happened, with numbers."""
    history = living(records)
    base, now = baseline_and_now(records, Evaluation)
    cost, costs_now = baseline_and_now(records, Cost)
    done = {one.cycle for one in events(records, Pruning)}
    words = []
    if history:
        first, last = history[0].count, history[-1].count
        what = f"{first} \u2192 {last} heads" if first != last else f"still all {first} heads"
        words.append(f"{what} in {len(done)} pruning cycle{'s' * (len(done) != 1)}")
    if (less := change(measure(cost, "parameters"), measure(costs_now, "parameters"))) is not None:
        words.append(html("{} parameters", percent(less)))
    ce, ce_now = measure(base, "ce"), measure(now, "ce")
    if ce is not None and ce_now is not None:
        rise = percent(change(ce, ce_now))
        words.append(html("cross-entropy {:.4f} \u2192 {:.4f} nats per token ({})", ce, ce_now, rise))
    steps, losses = series(records, "train/ce")
    if not words and steps:
        words.append(f"Training loss {losses[0]:.4f} \u2192 {losses[-1]:.4f} nats per token in {steps[-1]:,} steps")
    undone = len(events(records, Rollback))
    words += [f"{undone} rollback{'s' * (undone != 1)}"] if undone else []
    return Markup(", ").join(words) + "." if words else "No number was logged."


def _verdict(before: Evaluation | None, now: Evaluation | None) -> tuple[str, str]:
    """In words, and the class of its colour."""
    loss = change(measure(before, "ce"), measure(now, "ce"))
    if loss is None:
        return "No verdict: an evaluation before the first pruning and a later one are not both logged.", "warn"
    was = f"just before the first pruning ({measure(before, 'ce'):.4f})"
    if loss <= 0:
        return f"No worse than {was}.", "good"
    if loss <= SAME:
        return f"Within 1\u00a0% of {was}.", "good"
    return f"Worse by {100 * loss:.1f}\u00a0% than {was}.", "bad"


def _state(records: Sequence[Record]) -> str:
    """How the run ended, or where it is."""
    if end := end_of(records):
        return end
    if found := events(records, PhaseTransition):
        name = str(found[-1].phase)
        return chart_styles.SHOWN.get(name, name) + (f", cycle {found[-1].cycle}" if found[-1].cycle else "")
    return "training" if records else "nothing logged"


SUMMARY = Section("summary", "Summary", (), _summary)
