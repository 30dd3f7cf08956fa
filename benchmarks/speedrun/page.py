"""The page of the speedrun: two tables for each text, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import header
from benchmarks.speedrun.plan import OURS, Entry, Plan
from benchmarks.speedrun.ranking import Figure, Standing, standings, verdict
from benchmarks.speedrun.results import ADAPTING, FROZEN, Result, Results

TITLE = "# The CPU speedrun"
PICTURE = "speedrun.png"
PPMD = "PPMd"
HIGHEST = 2.0  # times the best figure: what lies above is left to the legend
INTRODUCTION = """`make speedrun` wrote this page. Who knows a text best after so many CPU seconds (user and system
time of the process and its children, from its start to the saved model)? A tokenizer is trained within them. What
a step costs is measured before, outside of the clock, and the number of steps fixed by it; a run that takes more
than 1 % beyond its budget is discarded and done again with fewer.

Every byte of the test text is predicted once, all contestants by the same code: windows of the contestant's own
length, half a window apart, so that each token has half a window before it; the first token costs as much as an
even choice, and a character that a vocabulary lacks costs an escape and its bytes. Recipes are chosen by the
held-out text, at the smaller budget, on the first text. Contestants and trials: `benchmarks/speedrun/plan.yaml`;
what of them is done again here: `benchmarks/peers`. Each run:
`docs/results/speedrun.jsonl`. A text of one's own: `python -m benchmarks.speedrun --train FILE --heldout FILE
--test FILE --name NAME --out FOLDER`."""


def write(results: Results, plan: Plan, out: Path, *, threads: int, text_names: Sequence[str]) -> Path:
    """speedrun.md, with its picture in `images`."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    known = [name for name in text_names if results.of(FROZEN, text=name) or results.of(ADAPTING, text=name)]
    drawn = draw(results, plan, known, out / "images" / PICTURE)
    parts = [TITLE, INTRODUCTION, _asked(plan), _machine(results, threads)]
    if drawn:
        parts.append(f"![Bits per byte of the test texts against CPU seconds](images/{PICTURE})")
    for name in known:
        parts += [f"## {name}", *_tables(results, plan, name), *_sooner(results, plan, name)]
    parts += ["## What it took", _spent(results, plan)]
    path = out / "speedrun.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _asked(plan: Plan) -> str:
    """What the plan is, beside which the tables show what has been run."""
    budgets = " and ".join(f"{budget:g}" for budget in plan.budgets)
    return (
        f"The plan: trials of each neural contestant: {plan.trials}; then at {budgets} CPU s {plan.seeds_of_first} "
        f"seeds of ours and of the best rival on the first text, {plan.seeds} of all others. What has fewer seeds (in "
        "brackets), fewer trials (below), or says `not run`, is still to be run, and may come to stand elsewhere."
    )


def _machine(results: Results, threads: int) -> str:
    commits = sorted({result.commit for result in results if result.commit})
    machines = sorted({result.machine for result in results if result.machine})
    own = sorted({result.key.threads for result in results if result.key.table == FROZEN}) or [threads]
    numbers = " or ".join(str(n) for n in own)
    return (
        f"Threads of each run: {numbers}. Commits of the runs: {', '.join(f'`{name}`' for name in commits)}. Machine: "
        f"{'; '.join(machines)}. This page: {header()}"
    )


def _tables(results: Results, plan: Plan, text: str) -> list[str]:
    frozen = standings(results, FROZEN, text, plan.budgets)
    adapting = standings(results, ADAPTING, text, plan.budgets)
    parts = []
    if frozen:
        parts += ["### Frozen", _frozen(frozen, plan), _first(frozen, plan)]
    if adapting:
        parts += ["### Adapting", _adapting(adapting, plan), _first(adapting, plan)]
    return parts


def _sooner(results: Results, plan: Plan, text: str) -> list[str]:
    """What ours needs to be where the best neural rival is, and what each needs to be where PPMd is."""
    lines = [line for line in (_with_a_third(results, plan, text), _until_ppmd(results, plan, text)) if line]
    return ["### Until the same figure", "\n".join(f"- {line}" for line in lines)] if lines else []


def _with_a_third(results: Results, plan: Plan, text: str) -> str:
    names = {entry.name for entry in plan.contestants if entry.is_neural and entry.name != OURS}
    rivals = [one for one in standings(results, FROZEN, text, plan.budgets) if one.contestant in names]
    own = {b: one for b in plan.sooner for one in standings(results, FROZEN, text, [b]) if one.contestant == OURS}
    said = []
    for budget, less in zip(plan.budgets, plan.sooner, strict=False):
        ranked = sorted((one.figures[budget].mean, _title(one, plan)) for one in rivals if budget in one.figures)
        if less in own and ranked:
            figure = own[less].figures[less].mean
            said.append(
                f"{figure:.4f} with {less:g} CPU s, beside {ranked[0][0]:.4f} of {ranked[0][1]} with {budget:g}"
            )
    return f"Ours, frozen: {'; '.join(said)}." if said else ""


def _until_ppmd(results: Results, plan: Plan, text: str) -> str:
    """A run is scored at its end: the smallest budget whose figure is as good."""
    adapting = standings(results, ADAPTING, text, plan.budgets)
    bar = next((one.figures[plan.budgets[0]].mean for one in adapting if one.contestant == PPMD), None)
    names = {entry.name for entry in plan.contestants if entry.is_neural}
    found = [(one, "") for one in standings(results, FROZEN, text, plan.budgets)]
    found += [(one, ", adapting") for one in adapting]
    neural = [(one, how) for one, how in found if one.contestant in names]
    if bar is None or not neural:
        return ""
    within = {
        f"{_title(one, plan)}{how}": [b for b in one.figures if one.figures[b].mean <= bar] for one, how in neural
    }
    there = [f"{name} within {min(budgets):g} CPU s" for name, budgets in within.items() if budgets]
    longest = max(budget for one, _ in neural for budget in one.figures)
    return f"PPMd's {bar:.4f}: {', '.join(there) or 'no neural contestant'}; no other one within {longest:g} CPU s."


def _frozen(found: Sequence[Standing], plan: Plan) -> str:
    names = [f"bits per byte at {budget:g} s" for budget in plan.budgets]
    head = ["", "contestant", *names, "CPU s", "steps", "trial"]
    rows = [[str(i), _title(one, plan), *_figures(one, plan), *_runs(one, plan)] for i, one in enumerate(found, 1)]
    note = (
        "Mean ± standard error, and how many seeds. CPU seconds and steps are means of the runs at each budget: beside "
        "other programs a calibration may find steps dearer than they are, and a run takes less than it may. The "
        "trial is the number of the chosen one, of those of the plan."
    )
    return f"{_table(head, rows)}\n\n{note}"


def _adapting(found: Sequence[Standing], plan: Plan) -> str:
    names = [f"bits per byte at {budget:g} s" for budget in plan.budgets]
    rows = [[str(i), _title(one, plan), *_figures(one, plan), _seconds(one)] for i, one in enumerate(found, 1)]
    note = (
        "What adapts learns from what it has read of the test text. Archives: what the test text adds to one of the "
        "training text. This project's figure is not of an archive: it is the cross-entropy that `main.py test` "
        "measures while it learns from what it has scored. CPU seconds: to read the test text (archives: both texts, "
        "twice the first)."
    )
    return f"{_table(['', 'contestant', *names, 'CPU s'], rows)}\n\n{note}"


def _figures(standing: Standing, plan: Plan) -> list[str]:
    return [_shown(standing.figures[b]) if b in standing.figures else "not run" for b in plan.budgets]


def _shown(figure: Figure) -> str:
    if figure.error is None:
        return f"{figure.mean:.4f} (1)"
    return f"{figure.mean:.4f} ± {figure.error:.4f} ({figure.n})" if figure.error else f"{figure.mean:.4f}"


def _runs(standing: Standing, plan: Plan) -> list[str]:
    """CPU seconds, steps, and the trial that was chosen."""
    seconds, steps = [], []
    for budget in plan.budgets:
        own = [r for r in standing.results if r.key.budget == budget]
        if own:
            seconds.append(f"{_mean([r.cpu_seconds for r in own]):.1f}")
            steps.append(f"{_mean([float(r.steps) for r in own]):,.0f}")
    without_budget = [f"{standing.results[0].cpu_seconds:.1f}"]
    return [", ".join(seconds or without_budget), ", ".join(steps), str(standing.results[-1].trial)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _seconds(standing: Standing) -> str:
    return f"{_mean([r.cpu_seconds for r in standing.results]):.1f}"


def _title(standing: Standing, plan: Plan) -> str:
    titles = {entry.name: entry.title for entry in plan.contestants}
    return titles.get(standing.contestant, standing.contestant)


def _first(found: Sequence[Standing], plan: Plan) -> str:
    """Whether the first place is more than chance, at each budget."""
    lines = []
    for budget in plan.budgets:
        own = sorted((s for s in found if budget in s.figures), key=lambda s: s.figures[budget].mean)
        if len(own) > 1:
            first, second = (_title(one, plan) for one in own[:2])
            said = verdict(own[0].figures[budget], own[1].figures[budget])
            lines.append(f"- At {budget:g} s: {first} before {second}; {said}.")
    return "\n".join(lines)


def _spent(results: Results, plan: Plan) -> str:
    rows = [_spent_on(entry, results, plan) for entry in plan.contestants]
    note = "CPU hours of all trainings: trials, calibrations and what was discarded; scoring is left out."
    return f"{_table(['contestant', 'trials', 'of', 'runs', 'discarded', 'CPU hours'], rows)}\n\n{note}"


def _spent_on(entry: Entry, results: Results, plan: Plan) -> list[str]:
    own: list[Result] = results.of(FROZEN, contestant=entry.name)
    trials = {r.trial for r in own if r.key.seed == 0 and r.key.budget in (0, plan.budgets[0])}
    hours = sum(r.spent for r in own) / 3600
    numbers = [len(trials), len(entry.trials), len(own), sum(r.discarded for r in own)]
    return [entry.title, *map(str, numbers), f"{hours:.2f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def draw(results: Results, plan: Plan, text_names: Sequence[str], path: Path) -> bool:
    """A panel for each text: trained models as points, the rest as lines; False where there is nothing to draw."""
    from matplotlib.figure import Figure as Picture  # a second of import, only where a picture is drawn

    if not text_names:
        return False
    picture = Picture(figsize=(1 + 6 * len(text_names), 6), layout="constrained")
    for number, name in enumerate(text_names, 1):
        axes = picture.add_subplot(1, len(text_names), number)
        found = [(one, table) for table in (FROZEN, ADAPTING) for one in standings(results, table, name, plan.budgets)]
        for i, (one, table) in enumerate(found):
            _draw_one(axes, one, plan, colour=f"C{i % 10}", style="-" if table == FROZEN else "--")
        axes.set(title=name, xlabel="CPU seconds", ylabel="bits per byte (dashed: adapting)")
        best = min(figure.mean for one, _ in found for figure in one.figures.values())
        axes.set_ylim(0.95 * best, min(axes.get_ylim()[1], HIGHEST * best))
        axes.set_xticks(plan.budgets, [f"{budget:g}" for budget in plan.budgets])
        axes.grid(alpha=0.25)
        axes.legend(fontsize="x-small", loc="upper right")
    picture.savefig(path, dpi=120)
    return True


def _draw_one(axes: Any, standing: Standing, plan: Plan, *, colour: str, style: str) -> None:
    """Thick where it is ours; the legend has the figure at the largest budget."""
    budgets = sorted(standing.figures)
    means = [standing.figures[budget].mean for budget in budgets]
    is_ours = standing.contestant == OURS
    adapting = ", adapting" if is_ours and style == "--" else ""
    look = {"color": colour, "linestyle": style, "label": f"{_title(standing, plan)}{adapting}: {means[-1]:.3f}"}
    if standing.results[0].key.budget:
        axes.plot(budgets, means, marker="o", linewidth=2.5 if is_ours else 1, **look)
    else:
        axes.axhline(means[-1], linewidth=1, alpha=0.6, **look)
