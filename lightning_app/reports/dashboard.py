"""dashboard.html: what neural plasticity did to the heads of a run, what it cost and saved, from the log alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lightning_app.reports.parts import (
    Grid,
    Part,
    draw_page,
    html_table,
    not_logged,
    number,
    percent,
    plain,
    sample_card,
    si,
    write_page,
)
from lightning_app.reports.plasticity import figures
from lightning_app.reports.plasticity.facts import (
    Record,
    baseline_and_now,
    change,
    cycles,
    evaluations,
    events,
    finite,
    last_step,
    living,
    phases,
    pruned_heads,
    series,
    step_of,
    unpruned,
)

SAME = 0.01  # a relative rise of the cross-entropy up to which the verdict is a good one
OPEN_PROMPTS = 2  # further ones are folded
SIGNS = ('<p class="why">Dot: alive. Triangle: died and was regrown. Filled: dead.</p>', "")
KEY = ("training", "warmup", "analysis", "pruning", "regrowth", "finetuning")


def write_dashboard(records: Sequence[Record], path: Path, *, title: str, single_file: bool = False) -> Path:
    """Write the page to `path`, and plotly's script beside it where it is not there; returns the page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    return write_page(draw_dashboard(records, title=title, single_file=single_file), path, single_file=single_file)


def draw_dashboard(records: Sequence[Record], *, title: str, single_file: bool = False) -> str:
    """The page of a run's records (`log.jsonl`); whatever was not logged is named as missing.

    Args:
        records: in the order of the log.
        title: of the page.
        single_file: plotly's script (5 MB) is part of the page; otherwise `plotly.min.js` has to lie beside it.
    """
    sections = [(id, name, draw(records)) for id, (name, draw) in SECTIONS.items()]
    return draw_page(sections, title=title, single_file=single_file)


# The summary


def _summary(records: Sequence[Record]) -> list[Part]:
    base, now = baseline_and_now(records, "evaluation")
    history = living(records)
    cost, costs_now = baseline_and_now(records, "cost")
    pruned = events(records, "pruning_event")
    verdict, kind = _verdict(unpruned(records), now) if pruned else ("No pruning was logged.", "")
    tiles = [
        ("State", escape(_state(records)), f"step {last_step(records):,}"),
        ("Heads alive", *_tile(_first(history), _last(history), "{:,.0f}")),
        ("Cross-entropy", *_tile(_get(base, "ce"), _get(now, "ce"), "{:.4f}", better=-1)),
        ("Perplexity", *_tile(_get(base, "ppl"), _get(now, "ppl"), "{:.2f}", better=-1)),
        ("Parameters", *_tile(_get(cost, "parameters"), _get(costs_now, "parameters"), si)),
        ("FLOPs per token", *_tile(_get(cost, "flops_per_token"), _get(costs_now, "flops_per_token"), si)),
        ("Latency, ms", *_tile(_get(cost, "latency_ms"), _get(costs_now, "latency_ms"), "{:.3g}", better=-1)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, value, more in tiles)
    parts: list[Part] = [
        f'<p class="lead">{_sentence(records)} <strong class="{kind}">{verdict}</strong></p>',
        f'<dl class="tiles">{cells}</dl>',
    ]
    if not events(records, "plasticity_started"):
        parts.insert(
            0,
            '<p class="missing">not logged: plasticity_started. No plasticity in this log: the sections '
            "below that need it say so, and the training curves are all there is.</p>",
        )
    broken = [r for r in events(records, "proof") if any(x is False for x in (r.get("checks") or {}).values())]
    if broken:
        where = ", ".join(f"step {step_of(r):,}" for r in broken)
        parts.insert(0, f'<p class="bad">A proof does not hold ({where}): see <a href="#proofs">the proofs</a>.</p>')
    if base and now and step_of(now) > step_of(base):
        more = step_of(now) - step_of(base)
        parts.append(
            f'<p class="note">{more:,} optimizer steps lie between the baseline and the model of now. Whether '
            "pruning or those steps changed the loss, only a run of as many steps without pruning can tell.</p>"
        )
    return parts


def _get(record: Record | None, name: str) -> float | None:
    return finite(record.get(name)) if record else None


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
    base, now = baseline_and_now(records, "evaluation")
    cost, costs_now = baseline_and_now(records, "cost")
    done = {r.get("cycle") for r in events(records, "pruning_event")}
    words = []
    if history:
        first, last = history[0].count, history[-1].count
        what = f"{first} \u2192 {last} heads" if first != last else f"still all {first} heads"
        words.append(f"{what} in {len(done)} pruning cycle{'s' * (len(done) != 1)}")
    if (less := change(_get(cost, "parameters"), _get(costs_now, "parameters"))) is not None:
        words.append(f"{percent(less)} parameters")
    ce, ce_now = _get(base, "ce"), _get(now, "ce")
    if ce is not None and ce_now is not None:
        words.append(f"cross-entropy {ce:.4f} \u2192 {ce_now:.4f} nats per token ({percent(change(ce, ce_now))})")
    steps, losses = series(records, "train/ce")
    if not words and steps:
        words.append(f"Training loss {losses[0]:.4f} \u2192 {losses[-1]:.4f} nats per token in {steps[-1]:,} steps")
    undone = len(events(records, "rollback"))
    words += [f"{undone} rollback{'s' * (undone != 1)}"] if undone else []
    return f"{', '.join(words)}." if words else "No number was logged."


def _verdict(before: Record | None, now: Record | None) -> tuple[str, str]:
    """In words, and the class of its colour."""
    loss = change(_get(before, "ce"), _get(now, "ce"))
    if loss is None:
        return "No verdict: an evaluation before the first pruning and a later one are not both logged.", "warn"
    was = f"just before the first pruning ({_get(before, 'ce'):.4f})"
    if loss <= 0:
        return f"No worse than {was}.", "good"
    if loss <= SAME:
        return f"Within 1\u00a0% of {was}.", "good"
    return f"Worse by {100 * loss:.1f}\u00a0% than {was}.", "bad"


def _state(records: Sequence[Record]) -> str:
    last = next(reversed(events(records, "started", "resumed", "ended", "failed", "closed")), {})
    if last.get("event") == "failed":
        return f"failed: {last.get('error', 'reason not logged')}"
    if last.get("event") in ("ended", "closed"):
        return "ended"
    if found := events(records, "phase_transition"):
        cycle = found[-1].get("cycle")
        name = str(found[-1].get("phase"))
        return figures.SHOWN.get(name, name) + (f", cycle {cycle}" if cycle else "")
    return "training" if records else "nothing logged"


# The other sections


def _timeline(records: Sequence[Record]) -> list[Part]:
    names = (figures.SHOWN.get(name, name) for name in KEY)
    items = "".join(
        f'<li style="--of:var(--{figures.PHASES[key][1:]})">{name + (", evaluation" if key == "analysis" else "")}</li>'
        for key, name in zip(KEY, names, strict=True)
    )
    key = f'<ul class="key" aria-label="Colours of the phases">{items}</ul>'
    rows = [
        [escape(figures.SHOWN.get(p.name, p.name)), f"{p.cycle}", f"{p.start:,}", f"{p.end:,}", escape(p.reason)]
        for p in phases(records)
    ]
    table = html_table("Phases", ("phase", "cycle", "from step", "to step", "why it began"), rows, texts=(0, 4))
    fold = f"<details><summary>{len(rows)} phases as a table</summary>{table}</details>"
    return [key, figures.timeline(records), fold] if rows else [figures.timeline(records)]


def _stabilisation(records: Sequence[Record]) -> list[Part]:
    found = events(records, "stabilised")
    return [Grid(figures.stabilisations(records), [_why(r) for r in found]), _absent(records, "stabilised")]


def _why(record: Record) -> str:
    """Why the rule fired, and whatever else the event carries."""
    own = ("time", "event", "step", "epoch", "cycle", "losses", "stable", "reason")
    fields = ", ".join(
        f"{escape(name)} {plain(value)}{' steps' * (name == 'after')}"
        for name, value in record.items()
        if name not in own
    )
    stable = record.get("stable")
    word = "stable" if stable else "stability not logged" if stable is None else "not stable, went on regardless"
    reason = escape(str(record.get("reason") or ""))
    why = f"{reason} ({fields})" if reason and fields else reason or fields or "no reason logged"
    return f'<p class="why"><span class="{"good" if stable else "warn"}">{word}</span>: {why}</p>'


def _analyses(records: Sequence[Record]) -> list[Part]:
    if not events(records, "analysis"):
        return [_absent(records, "analysis")]
    parts: list[Part] = [
        '<p class="note">Layers and heads count from 0. \u2715: dead. \u2013: alive, but not measured. '
        "One scale for all cycles of a measure.</p>"
    ]
    for name, unit in (("entropy", "nats"), ("gradient", ""), ("importance", "")):
        maps = figures.analysis_maps(records, name)
        parts += [f"<h3>{name.capitalize()}{unit and ', '}{unit}</h3>", Grid(maps) if maps else not_logged([name])]
    return parts


def _gradients(records: Sequence[Record]) -> list[Part]:
    found = events(records, "analysis")
    maps = figures.over_time("gradient", "Gradient at each analysis", found, "gradient")
    return [Grid(maps, wide=True) if maps else not_logged(["gradient"])]


def _finetuning(records: Sequence[Record]) -> list[Part]:
    found = figures.finetunings(records)
    if not found:
        return [not_logged(["phase_transition to finetuning"])]
    return [
        '<p class="note">Lines: the run\u2019s own losses. Diamonds: the evaluations, on their seeded sample.</p>',
        Grid(found, wide=True),
    ]


def _chosen(records: Sequence[Record]) -> list[Part]:
    heads = pruned_heads(records)
    rows = [
        [
            "?" if one.cycle is None else f"{one.cycle}",
            f"{one.step:,}",
            f"{one.head[0]}",
            f"{one.head[1]}",
            number(one.score, "{:.5g}"),
            escape(one.reason) or number(None),
            escape(one.fate),
        ]
        for one in heads
    ]
    names = ["cycle", "step", "layer", "head", "score", "why it was chosen", "came back?"]
    table = html_table("Pruned heads", names, rows, texts=(5, 6)) if rows else not_logged(["pruning_event (heads)"])
    neurons = [r for r in events(records, "pruning_event") if r.get("target") == "neurons"]
    rows = [
        [
            plain(r.get("cycle")),
            f"{step_of(r):,}",
            _per_layer(r.get("removed")),
            _per_layer(r.get("widths")),
            escape(str(r.get("reason") or "")) or number(None),
        ]
        for r in neurons
    ]
    names = ["cycle", "step", "removed by layer", "left by layer", "why"]
    return [table, html_table("Pruned neurons", names, rows, texts=(2, 3, 4)) if rows else ""]


def _per_layer(counts: Sequence[int] | None) -> str:
    return ", ".join(f"{count:,}" for count in counts) if counts else number(None)


def _alive(records: Sequence[Record]) -> list[Part]:
    found = figures.heads_alive(records)
    back = [
        [
            plain(r.get("cycle")),
            f"{step_of(r):,}",
            ", ".join(f"{layer}.{head}" for layer, head in figures.heads_of(r)),
            ", ".join(number(score, "{:.5g}") for score in r.get("scores") or []) or number(None),
            plain(r.get("how") or ""),
            escape(str(r.get("reason") or "")) or number(None),
        ]
        for r in events(records, "regrowth_event")
    ]
    names = ("cycle", "step", "heads", "scores", "how", "why")
    return [
        Grid(found, SIGNS, wide=True) if found else not_logged(["plasticity_started", "plasticity/active_heads"]),
        html_table("Regrown heads (layer.head)", names, back, texts=(2, 4, 5)) if back else "",
    ]


def _impact(records: Sequence[Record]) -> list[Part]:
    if not evaluations(records):
        return [_absent(records, "evaluation")]
    base, _ = baseline_and_now(records, "evaluation")
    ce = _get(base, "ce")
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
    return [figures.impact(records), table if rows else "", "" if ce else not_logged(["evaluation of stage baseline"])]


def _against(records: Sequence[Record]) -> list[Part]:
    """Baseline and now side by side, what each stage costs, and the charts of both."""
    base, now = baseline_and_now(records, "evaluation")
    cost, costs_now = baseline_and_now(records, "cost")
    pairs = (
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
            number(_get(one, key), spec),
            number(_get(two, key), spec),
            percent(change(_get(one, key), _get(two, key)), better=-1),
        ]
        for name, key, one, two, spec in pairs
    ]
    stages = [f"evaluated {figures.stage_of(now)}"] if now else []
    stages += [f"measured {escape(str(costs_now.get('stage')))}"] if costs_now else []
    caption = f"Baseline and now ({'; '.join(stages) or 'later stages not logged'})"
    parts: list[Part] = [html_table(caption, ("", "baseline", "now", "change"), rows, texts=(0,))]
    found = events(records, "cost")
    if not found:
        return [*parts, not_logged(["cost"])]
    rows = [
        [
            escape(str(r.get("stage"))),
            *(number(r.get(name), "{:,.0f}") for name in ("parameters", "bytes", "flops_per_token")),
            number(r.get("latency_ms"), "{:.3f}"),
            " to ".join(number(x, "{:.3f}") for x in r.get("latency_spread") or [None]),
            "\u2013" if r.get("stage") == "baseline" else number(r.get("measured"), "{:.3f}"),
            "\u2013" if r.get("stage") == "baseline" else number(r.get("ceiling"), "{:.3f}"),
        ]
        for r in found
    ]
    names = ("stage", "parameters", "bytes", "FLOPs per token", "latency, ms", "spread, ms", "speed-up", "ceiling")
    table = html_table("What each stage costs", names, rows, texts=(0,))
    note = (
        '<p class="note">Speed-up: latency of the baseline over that of the stage, as measured. '
        "Ceiling: the one that the FLOPs allow.</p>"
    )
    return [*parts, Grid(figures.costs(records), wide=True), table, note]


def _samples(records: Sequence[Record]) -> list[Part]:
    found = events(records, "text_samples")
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for r in found:
        for one in r.get("texts") or []:
            by_prompt.setdefault(str(one.get("prompt")), []).append((str(r.get("stage")), str(one.get("text"))))
    parts: list[Part] = []
    for i, (prompt, texts) in enumerate(by_prompt.items()):
        cards = "".join(sample_card(stage, prompt, text) for stage, text in texts)
        opened = " open" if i < OPEN_PROMPTS else ""
        head = escape(prompt) or "(no prompt)"
        parts.append(
            f'<details{opened}><summary>Prompt: <bdi>{head}</bdi></summary><div class="samples">{cards}</div></details>'
        )
    return parts or [_absent(records, "text_samples")]


def _rates(records: Sequence[Record]) -> list[Part]:
    rows = [
        [
            f"{step_of(r):,}",
            escape(str(g.get("name"))),
            number(g.get("lr"), "{:.3g}"),
            number(g.get("factor"), "{:.4g}"),
        ]
        for r in events(records, "learning_rates")
        for g in r.get("groups") or []
    ]
    table = html_table(
        "Learning rate of each group where it was set", ("step", "group", "rate", "factor"), rows, texts=(1,)
    )
    fold = f"<details open><summary>{len(rows)} rates of groups as a table</summary>{table}</details>" if rows else ""
    found = figures.rates(records)
    return [*found, fold] if found else [not_logged(["lr", "learning_rates"])]


def _controller(records: Sequence[Record]) -> list[Part]:
    found = figures.controller(records)
    return [Grid(found, wide=True) if found else not_logged(["controller_update", "controller/mean_gate"])]


def _proofs(records: Sequence[Record]) -> list[Part]:
    rows = [
        [plain(r.get("cycle")), f"{step_of(r):,}", escape(str(name)), _check(value)]
        for r in events(records, "proof")
        for name, value in (r.get("checks") or {}).items()
    ]
    proofs = html_table("What was proved after each change", ("cycle", "step", "check", "result"), rows, texts=(2,))
    undone = [
        [
            plain(r.get("cycle")),
            f"{step_of(r):,}",
            number(r.get("ce")),
            number(r.get("limit")),
            escape(str(r.get("reason") or "")),
        ]
        for r in events(records, "rollback")
    ]
    names = ("cycle", "step", "cross-entropy", "limit", "why")
    none = '<p class="note">No rollback in this log.</p>'
    return [
        proofs if rows else not_logged(["proof"]),
        html_table("Rollbacks", names, undone, texts=(4,)) if undone else none,
    ]


def _check(value: Any) -> str:
    if isinstance(value, bool):
        return '<span class="good">\u2713 holds</span>' if value else '<span class="bad">\u2717 does not hold</span>'
    return plain(value)


def _run(records: Sequence[Record]) -> list[Part]:
    rows = [
        [escape(r["event"]), f"{step_of(r):,}", escape(name), plain(value)]
        for r in events(records, "plasticity_started", "started", "resumed", "data", "ended", "failed", "closed")
        for name, value in r.items()
        if name not in ("event", "time", "step", "epoch")
    ]
    names = ("event", "step", "field", "value")
    fold = html_table("Settings and outcome", names, rows, texts=(0, 2, 3)) if rows else not_logged(["started"])
    return [f'<p class="note">{len(records):,} records, {last_step(records):,} optimizer steps.</p>', fold]


def _absent(records: Sequence[Record], event: str) -> str:
    return "" if events(records, event) else not_logged([event])


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Record]], list[Part]]]] = {
    "summary": ("Summary", _summary),
    "phases": ("Timeline", _timeline),
    "stabilisation": ("Stabilisation", _stabilisation),
    "analyses": ("Head analysis", _analyses),
    "gradients": ("Gradients over time", _gradients),
    "chosen": ("Heads chosen", _chosen),
    "alive": ("Heads alive", _alive),
    "impacts": ("Impact and recovery", _impact),
    "fine-tuning": ("Fine-tuning", _finetuning),
    "against": ("Baseline against now", _against),
    "samples": ("Text samples", _samples),
    "learning-rates": ("Learning rates", _rates),
    "gates": ("Controller", _controller),
    "proofs": ("Proofs and rollbacks", _proofs),
    "run": ("Run", _run),
}
