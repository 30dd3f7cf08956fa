"""The tables of several runs: what each reached, and what it cost; plain text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_app.reports.beside import MODEL, of_validation
from lightning_app.reports.groups import Group, against, baseline_of, cautions, groups_of, living, ranked
from lightning_app.reports.intervals import Estimate
from lightning_app.reports.parts import si
from lightning_app.reports.runs import Run
from lightning_app.reports.tables import format_columns

ABSENT_WORD = "not in this log"
Table = tuple[list[str], list[list[str]]]  # heads, and rows
MEASURED = (  # name, what it is called, digits
    ("val/bpb", "bits/byte", 4),
    ("val/ce", "nats/token", 4),
    ("val/ppl", "perplexity", 2),
    ("val/acc", "accuracy", 4),
)


def results(groups: Sequence[Group], baseline: Group) -> Table:
    """What each group reached, and how much worse (+) or better it is than the baseline."""
    several = len(groups) > 1
    heads = ["run", *(name for _, name, _ in MEASURED), *["change"] * several, "at step", "intervals over"]
    rows = []
    for group in groups:
        cells = [_interval(group.estimate(name), f"{{:.{digits}f}}") for name, _, digits in MEASURED]
        steps = ", ".join(f"{run.best.step:,}" if run.best else ABSENT_WORD for run in group.runs)
        rows.append([group.label, *cells, *[change(group, baseline)] * several, steps, group.chance])
    return heads, rows


def change(group: Group, baseline: Group) -> str:
    """How much more bits per byte than the baseline, in per cent."""
    return "\u2013" if group is baseline else _interval(against(group, baseline), "{:+.1f}", unit=" %")


def peers(groups: Sequence[Group]) -> Table:
    """What the validation text needs with the model and without one, frozen and adapting apart; means over the runs of
    a group. No rows where no log says it."""
    found = [[_needed(run) for run in group.runs] for group in groups]
    known = dict.fromkeys(key for runs in found for run in runs for key in run)
    columns = sorted(known, key=lambda key: (key[0], key[1] != MODEL))
    heads = ["run", *(f"{'adapting' if adapts else 'frozen'}: {who}" for adapts, who in columns)]
    rows = []
    for group, runs in zip(groups, found, strict=True):
        means = [group.mean([run.get(key) for run in runs]) for key in columns]
        rows.append([group.label, *("\u2013" if mean is None else f"{mean:.3f}" for mean in means)])
    return heads, rows if columns else []


def _needed(run: Run) -> dict[tuple[bool, str], float]:
    return {(one.adapts, one.who): one.bits for one in of_validation(run.records)}


def costs(groups: Sequence[Group]) -> Table:
    """Sizes, and what training took; means over the runs of a group."""
    heads = ["run", "parameters", "FLOPs per token", "tokens", "training FLOPs", "tokens/s", "time", "steps"]
    rows = []
    for group in groups:
        numbers = [
            _before_and_after(group, "parameters"),
            _before_and_after(group, "flops_per_token"),
            _si(group.mean([run.total("tokens") for run in group.runs])),
            _si(group.mean([run.total("train_flops") for run in group.runs])),
            _number(group.mean([run.tokens_per_s for run in group.runs]), "{:,.0f}"),
            _duration(group.mean([run.seconds for run in group.runs])),
        ]
        rows.append([group.label, *numbers, ", ".join(f"{run.steps:,}" for run in group.runs)])
    return heads, rows


def _before_and_after(group: Group, name: str) -> str:
    """ "1.56 M", or "1.56 M -> 1.16 M" where a run was pruned."""
    pairs = [getattr(run, name) for run in group.runs]
    first, last = (group.mean([pair[i] for pair in pairs]) for i in (0, 1))
    if first is None or last is None:
        return _si(first)
    return si(first) if abs(last / first - 1) < 5e-3 else f"{si(first)} \u2192 {si(last)}"


def _interval(one: Estimate | None, spec: str, unit: str = "") -> str:
    if one is None:
        return ABSENT_WORD
    value = spec.format(one.value).replace("-", "\u2212")
    if one.low is None or one.high is None:
        return value + unit
    low, high = (spec.format(end).replace("-", "\u2212") for end in (one.low, one.high))
    return f"{value}{unit} [{low}, {high}]"


def _number(value: float | None, spec: str) -> str:
    return ABSENT_WORD if value is None else spec.format(value)


def _si(value: float | None) -> str:
    return ABSENT_WORD if value is None else si(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT_WORD
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def format_comparison(runs: Sequence[Run], baseline: str | None = None) -> str:
    """For the terminal, the best first."""
    alive = living(runs)
    groups = ranked(groups_of(alive))
    base = baseline_of(groups, alive, baseline)
    said = [f"! {caution}" for caution in cautions(alive)]
    without_model = peers(groups)
    parts = [
        *said,
        *format_columns(*results(groups, base), left=(0,)),
        "",
        *([*format_columns(*without_model, left=(0,)), ""] if without_model[1] else []),
        *format_columns(*costs(groups), left=(0,)),
    ]
    return "\n".join([*parts, "", *_lines(nothing_measured(runs)), legend(groups, base)])


def _lines(text: str) -> list[str]:
    return [text, ""] if text else []


def nothing_measured(runs: Sequence[Run]) -> str:
    """The runs that no table has, with what became of them, in one line; "" where there is none."""
    alive = living(runs)
    dead = [f"{run.label} ({run.state})" for run in runs if run not in alive]
    return f"Nothing measured by {len(dead)} of {len(runs)} runs: {', '.join(dead)}." if dead else ""


def legend(groups: Sequence[Group], baseline: Group) -> str:
    """How the first table is to be read."""
    said = (
        "[low, high]: 95 % intervals. Over seeds: Student's t of the mean. Over passages: a bootstrap over parts of "
        "the validation text, so the chance of the text and not that of training. Over nothing: one run without "
        "passages."
    )
    if len(groups) == 1:
        return said
    return (
        f"{said} Change: of bits per byte against {baseline.label}, over seeds (Welch's t) where both have several, "
        "else over passages; lower is better."
    )
