"""From the results of experiments.plasticity to the last section of docs/plasticity.md.

Shapes: D documents, I cloze items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plans, store, untrained
from experiments.arguments import name_of, told
from experiments.plans import commit
from experiments.statistics import HOW, Interval, change, difference

SECTION = "## Is it real?"  # the last one of its page
PICTURE = "images/plasticity.png"
DEFAULT, UNPRUNED, RANDOM = "Taylor", "unpruned", "random"
FASTER = 30.0  # per cent of the inference time that is to go
CORRELATED = 0.5  # Spearman of the controller's predictions
Record = store.Record


class Results:
    """Of all arms and seeds in a folder."""

    def __init__(self, folder: Path):
        found = store.records(folder)
        self.scores = sorted((r for r in found if r["arm"] == "scores"), key=lambda r: int(r["seed"]))
        self.arms: dict[str, list[Record]] = {}
        for record in sorted((r for r in found if r["arm"] != "scores"), key=lambda r: int(r["seed"])):
            self.arms.setdefault(record["arm"], []).append(record)

    @property
    def strategies(self) -> list[str]:
        return [name for name in self.scores[0]["strategies"] if not name.startswith(RANDOM)]

    @property
    def draws(self) -> list[str]:
        return [name for name in self.scores[0]["strategies"] if name.startswith(RANDOM)]

    def bits(self, nats: Sequence[float], text: str) -> float:
        return float(np.sum(nats) / np.sum(self.scores[0]["scale"][text]))

    # Before fine-tuning

    def before(self, strategy: str, level: str, text: str = "test") -> list[float]:
        """Per cent more bits per byte than the whole model has, of each seed."""
        return [
            100 * (np.sum(r["strategies"][strategy]["levels"][level][text]) / np.sum(r["whole"][text]) - 1)
            for r in self.scores
        ]

    def of(self, strategy: str, what: str) -> float:
        return float(np.mean([record["strategies"][strategy][what] for record in self.scores]))

    # After it

    def against(self, arm: str, base: str = UNPRUNED, text: str = "test") -> Interval:
        """Per cent more bits per byte, over the seeds that both have."""
        seeds = {r["seed"] for r in self.arms[arm]} & {r["seed"] for r in self.arms[base]}
        sides = [np.array([r[text] for r in self.arms[name] if r["seed"] in seeds]) for name in (arm, base)]
        return change(*sides)

    def right(self, arm: str) -> np.ndarray:
        """(I,) share of the seeds that guess an item's word."""
        return np.mean([record["cloze"] for record in self.arms[arm]], axis=0)

    def right_against(self, arm: str) -> Interval:
        """Percentage points of cloze accuracy more than unpruned, over the seeds that both have."""
        seeds = {r["seed"] for r in self.arms[arm]} & {r["seed"] for r in self.arms[UNPRUNED]}
        sides = [np.array([r["cloze"] for r in self.arms[name] if r["seed"] in seeds]) for name in (arm, UNPRUNED)]
        return difference(*(100 * side for side in sides))

    def mean(self, arm: str, what: str) -> float:
        return float(np.mean([record[what] for record in self.arms[arm]]))


def write(folder: Path, plan: dict[str, Any], out: Path, *, command: str) -> str:
    """The last section of `out`/plasticity.md, which is also printed; the picture lies in `out`/images."""
    results, rules = Results(folder), plans.Rules(**plan["rules"])
    parts = [SECTION, _setting(plan, command), plans.told(folder, rules, list(results.arms))]
    if results.scores:
        (out / PICTURE).parent.mkdir(parents=True, exist_ok=True)
        draw(results, out / PICTURE)
        parts += [f"![What heads cost that go, before and after fine-tuning]({PICTURE})", _before(results)]
    if UNPRUNED in results.arms:
        parts += [_after(results, steps=plan["finetuning"]), untrained.told(folder), _targets(results, rules.margins)]
    page = "\n\n".join(part for part in parts if part) + "\n"
    path = out / "plasticity.md"
    before = path.read_text(encoding="utf-8").partition(SECTION)[0] if path.is_file() else ""
    path.write_text(before + page, encoding="utf-8")
    return page


def _setting(plan: dict[str, Any], command: str) -> str:
    train, unseen = name_of(plan["train"]), name_of(plan["second"])
    (chosen, scored), training = told(plan), plan["training"]
    return (
        f"Written by `{command}` at commit {commit()}. A decoder with {plan['model']} and a BPE of "
        f"{plan['vocab_size']:,} is trained on {train} for {training['steps']} steps of {training['batch_size']} x "
        f"{training['block_size']} tokens at a constant learning rate of {training['lr']:g}; then units go, "
        f"with the optimizer's state, and all arms train {plan['finetuning']} steps more, in which the learning rate "
        "falls by a cosine, on the same batches in the same order: the unpruned model too. Importance is measured on "
        f"{plan['sample']} sequences of {chosen}; all is scored on {plan['blocks']} blocks of {scored}, on as many of "
        f"{unseen}, which is of another kind, and on {plan['items']} sentences whose last word is to be guessed. "
        f"Seeds: {', '.join(map(str, plan['seeds']))}. {HOW} "
        "In the column of the cloze test documents are its sentences. The sizes given here and the default "
        "strategy were chosen on WikiText-2's validation split and tiny Shakespeare, in an exploration before: the "
        "figures of these flatter that strategy."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _before(results: Results) -> str:
    levels = list(results.scores[0]["strategies"][DEFAULT]["levels"])
    rows = []
    for name in results.strategies:
        values = [f"{np.mean(results.before(name, level)):+.2f}" for level in levels]
        unseen = f"{np.mean(results.before(name, '0.5', 'unseen')):+.2f}"
        rows.append(
            [name, *values, unseen, f"{results.of(name, 'spearman'):.2f}", f"{results.of(name, 'seconds'):.1f}"]
        )
    every = {level: [results.before(draw, level) for draw in results.draws] for level in levels}
    of_unseen = [results.before(draw, "0.5", "unseen") for draw in results.draws]
    for name, of in (("random, mean of 5", np.mean), ("random, best of 5", _best)):
        rows.append([name, *(f"{of(every[level]):+.2f}" for level in levels), f"{of(of_unseen):+.2f}", "", ""])
    heads = ["strategy", *(f"{float(level):.0%} of heads" for level in levels), "unseen text, 50%", "Spearman", "CPU s"]
    return (
        "### Before fine-tuning\n\nBits per byte, per cent more than the whole model's at that step, mean over the "
        "seeds. Spearman: rank correlation with leaving one head out. The best draw is that of each seed.\n\n"
        + _table(heads, rows)
    )


def _best(values: Sequence[Sequence[float]]) -> float:
    """(draws, seeds) -> mean over the seeds of the lowest."""
    return float(np.min(values, axis=0).mean())


def _after(results: Results, *, steps: int) -> str:
    rows = []
    for arm, found in results.arms.items():
        base = results.mean(UNPRUNED, "training_seconds")
        rows.append(
            [
                arm if arm != UNPRUNED else f"**{arm}**",
                f"{np.mean([results.bits(r['test'], 'test') for r in found]):.4f}",
                "" if arm == UNPRUNED else str(results.against(arm)),
                "" if arm == UNPRUNED else str(results.against(arm, text="unseen")),
                _cloze(results, arm),
                f"{results.mean(arm, 'parameters') / results.mean(arm, 'parameters_whole'):.1%}",
                f"{results.mean(arm, 'flops_whole') / results.mean(arm, 'flops'):.2f}",
                f"{results.mean(arm, 'speedup'):.2f}",
                f"{results.mean(arm, 'training_seconds'):.0f} ({results.mean(arm, 'training_seconds') / base:.2f})",
            ]
        )
    heads = [
        "arm",
        "bits per byte",
        "change, %",
        "unseen text, %",
        "cloze, %",
        "parameters",
        "ceiling",
        "faster",
        "training, CPU s",
    ]
    return (
        "### After fine-tuning\n\nAgainst the unpruned model with as many steps. The level is the share of the heads "
        "that are gone. Ceiling: how many times faster FLOPs allow a forward to be; faster: measured, the whole model "
        f"and the pruned one in turns in one process; training: CPU seconds of the {steps} steps of fine-tuning, and "
        "in parentheses times those of the unpruned model (other jobs ran beside it). The second line is what another "
        "order of the batches changes: noise.\n\n" + _table(heads, rows)
    )


def _cloze(results: Results, arm: str) -> str:
    """Per cent of the words guessed, and the change; nothing where the text had no sentence to ask for."""
    right = results.right(arm)
    if not len(right):
        return ""
    change = "" if arm == UNPRUNED else f" ({results.right_against(arm)})"
    return f"{100 * right.mean():.1f}{change}"


def _targets(results: Results, margins: Mapping[str, float]) -> str:
    rows = []
    for level in ("30%", "50%"):
        ours = f"{DEFAULT}, {level}"
        draws = [f"{name}, {level}" for name in results.draws]
        known = {r["seed"]: np.sum(r["test"]) for r in results.arms.get(ours, [])}
        pairs = [
            known[r["seed"]] < np.sum(r["test"]) for d in draws for r in results.arms.get(d, []) if r["seed"] in known
        ]
        share = f"{float(level[:-1]) / 100}"
        early = [
            mine < theirs
            for draw in results.draws
            for mine, theirs in zip(results.before(DEFAULT, share), results.before(draw, share), strict=True)
        ]
        said = f"{sum(early)} of {len(early)} before fine-tuning, {sum(pairs)} of {len(pairs)} after"
        rows.append([f"{DEFAULT} beats each random draw at {level}", said, _met(bool(pairs) and all(pairs + early))])
    for level in ("30%", "50%"):
        if f"{DEFAULT}, {level}" in results.arms:
            found = results.against(f"{DEFAULT}, {level}")
            said = f"at {level} not worse than unpruned by {margins[level]:g} %: the interval lies below that"
            rows.append([said, f"{found} %", found.not_worse(margins[level])])
    within = margins["50%"]
    faster = {arm: 100 * (1 - 1 / results.mean(arm, "speedup")) for arm in results.arms if "neurons" in arm}
    good = [arm for arm in faster if results.against(arm, text="heldout").mean <= within]
    if faster:
        best = max(good or faster, key=lambda arm: faster[arm])  # not chosen on what is scored
        said = f"{best}: {faster[best]:.0f} % less time, {results.against(best)} % bits per byte"
        rows.append(
            [
                f"with neurons {FASTER:g} % less inference time at no more than {within:g} %",
                said,
                _met(results.against(best).not_worse(within) == "yes" and faster[best] >= FASTER),
            ]
        )
    ranks = [record["heldout_spearman"] for record in results.scores]
    said = ", ".join(f"{value:.2f}" for value in ranks)
    met = all(value >= CORRELATED for value in ranks)
    rows.append(
        [
            f"the controller's damage of heads that it did not learn from: Spearman of at least {CORRELATED:g}",
            said,
            _met(met),
        ]
    )
    return "### Targets\n\n" + _table(["target", "measured", "met"], rows)


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def draw(results: Results, path: Path) -> None:
    """Change of bits per byte over the level, before and after fine-tuning: strategies, and the range of the draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = list(results.scores[0]["strategies"][DEFAULT]["levels"])
    x = [100 * float(level) for level in levels]
    every = np.asarray([[np.mean(results.before(draw, level)) for level in levels] for draw in results.draws])
    left.fill_between(x, every.min(0), every.max(0), color="#bbbbbb", alpha=0.5, label="random, range of 5 draws")
    for i, name in enumerate(results.strategies):
        values = [np.mean(results.before(name, level)) for level in levels]
        style = (
            {"color": "#c1440e", "linewidth": 2.6, "zorder": 5}
            if name == DEFAULT
            else {"color": f"C{i % 10}", "linewidth": 1.2}
        )
        left.plot(x, values, marker="o", markersize=3, label=name, **style)
    left.set(title="before fine-tuning", xlabel="% of heads removed", ylabel="% more bits per byte than unpruned")
    left.legend(fontsize=7)
    shown = [arm for arm in results.arms if arm != UNPRUNED and math.isfinite(results.against(arm).low)]
    for y, arm in enumerate(reversed(shown)):
        found = results.against(arm)
        colour = "#c1440e" if arm.startswith(DEFAULT) else "#999999" if arm.startswith(RANDOM) else "#2f6ca3"
        right.plot([found.low, found.high], [y, y], color=colour, linewidth=1.6)
        right.plot([found.mean], [y], "o", color=colour, markersize=3.5)
    right.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=5.5)
    right.axvline(0, color="#444444", linewidth=0.8)
    right.set(title="after fine-tuning, 95 % intervals", xlabel="% more bits per byte than unpruned")
    figure.savefig(path, dpi=130)
