"""From the results of experiments.plasticity to two sections of docs/plasticity.md: the answer, and all figures.

Shapes: S seeds, D documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import criteria, judges, plans, sections, stabilization, store, untrained
from experiments.arguments import name_of, told
from experiments.plans import commit
from experiments.plasticity_plan import (
    ALL_OFF,
    DEFAULT,
    FINISHED,
    FROZEN,
    LEVELS,
    OTHER_ORDER,
    RANDOM,
    SMALLER,
    UNPRUNED,
)
from experiments.statistics import HOW, Interval, change
from experiments.tables import table

ANSWER = "## What it gains"
SECTION = "## Is it real?"  # the last one of its page
PICTURE = "images/plasticity.png"
RESULTS = "plasticity.jsonl"
LOSSES = "losses.jsonl"
HALVED = f"{DEFAULT}, 75%"  # the arm whose cost a teacher is to halve
REPLAYED = (  # trainings that the rules of stability are asked about
    "from scratch, constant rate",
    "from scratch, a cosine at the end",
    f"from scratch, a cosine: {criteria.WHOLE}",
    f"fine-tuning: {HALVED}",
    "fine-tuning with LoRA",
)
ADDS = 0.02  # of Spearman's correlation: so much more than Taylor alone a network must know
Record = store.Record


class Results:
    """Of all arms and seeds in a folder."""

    def __init__(self, folder: Path):
        found = sorted(store.records(folder), key=lambda r: int(r["seed"]))
        self.scores = [r for r in found if r["arm"] == "scores"]
        self.arms: dict[str, dict[int, Record]] = {}
        for record in found:
            if record["arm"] != "scores":
                self.arms.setdefault(record["arm"], {})[int(record["seed"])] = record

    @property
    def strategies(self) -> list[str]:
        return [name for name in self.scores[0]["strategies"] if name not in RANDOM]

    def bits(self, arm: str) -> float:
        """Per byte, the mean over the seeds."""
        nats = [np.sum(record["test"]) for record in self.arms[arm].values()]
        return float(np.mean(nats) / np.sum(self.scores[0]["scale"]))

    def nats(self, arm: str, seeds: Iterable[int]) -> np.ndarray:
        """(S, D)"""
        return np.array([self.arms[arm][seed]["test"] for seed in seeds])

    def against(self, arm: str, base: str = UNPRUNED) -> Interval:
        """Per cent more bits per byte, over the seeds that both have."""
        seeds = sorted(set(self.arms[arm]) & set(self.arms[base]))
        return change(self.nats(arm, seeds), self.nats(base, seeds))

    def of_each_seed(self, arm: str, base: str = UNPRUNED) -> list[float]:
        """Per cent more, seed by seed."""
        seeds = sorted(set(self.arms[arm]) & set(self.arms[base]))
        return [100 * float(np.sum(self.arms[arm][s]["test"]) / np.sum(self.arms[base][s]["test"]) - 1) for s in seeds]

    def between_seeds(self) -> list[float]:
        """Per cent that the unpruned model of each seed has more than that of the next one."""
        nats = [float(np.sum(record["test"])) for record in self.arms[UNPRUNED].values()]
        return [100 * (one / other - 1) for one, other in zip(nats, [*nats[1:], nats[0]], strict=True)]

    def mean(self, arm: str, what: str) -> float:
        return float(np.mean([record[what] for record in self.arms[arm].values()]))

    # Before fine-tuning

    def before(self, strategy: str, level: str) -> list[float]:
        """Per cent more bits per byte than the whole model has, of each seed."""
        return [
            100 * float(np.sum(r["strategies"][strategy]["levels"][level]) / np.sum(r["whole"]) - 1)
            for r in self.scores
        ]

    def off(self) -> Interval:
        """Per cent more without any head, before fine-tuning."""
        return change(np.array([r["off"] for r in self.scores]), np.array([r["whole"] for r in self.scores]))

    def of(self, strategy: str, what: str) -> float:
        return float(np.mean([record["strategies"][strategy][what] for record in self.scores]))


def write(folder: Path, plan: dict[str, Any], out: Path, *, logs: Sequence[Path], command: str) -> str:
    """Both sections of `out`/plasticity.md, which are also printed; picture and results lie beside it.

    Args:
        logs: folders with the losses of trainings.
    """
    results, rules = Results(folder), plans.Rules(**plan["rules"])
    answer = _joined(
        [ANSWER, _opening(results), _scale(results), _targets(results, rules.margins), _sentences(results)]
    )
    picture = out / PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(results, picture)
    details = _joined(
        [
            SECTION,
            _setting(plan, command),
            plans.told(folder, rules, list(results.arms)),
            f"![What heads cost that go, before and after fine-tuning]({PICTURE})",
            _before(results),
            _after(results),
            _pairs(results),
            _recovery(results),
            _when(results, plan["criteria"]),
            replayed(logs),
            _judges(results),
            untrained.told(folder),
        ]
    )
    sections.put(out / "plasticity.md", SECTION, details)
    sections.put(out / "plasticity.md", ANSWER, answer, before=SECTION)
    plans.publish(folder, rules, out / "results" / RESULTS)
    return f"{answer}\n{details}"


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(plan: dict[str, Any], command: str) -> str:
    (chosen, scored), training = told(plan), plan["training"]
    return (
        f"Written by `{command}` at commit {commit()}. A decoder with {plan['model']} and a BPE of "
        f"{plan['vocab_size']:,} is trained on {name_of(plan['train'])} for {training['steps']} steps of "
        f"{training['batch_size']} x {training['block_size']} tokens at a constant learning rate of "
        f"{training['lr']:g}; then units go, with the optimizer's state, and all arms train {plan['finetuning']} steps "
        "more, in which the learning rate falls by a cosine, on the same batches in the same order: the unpruned model "
        f"too. Importance is measured on {plan['sample']} sequences of {chosen}; all is scored on {plan['blocks']} "
        f"blocks of {scored}. Seeds: {', '.join(map(str, plan['seeds']))}. {HOW} The sizes given here and the default "
        "strategy were chosen on WikiText-2's validation split and tiny Shakespeare, in an exploration before: the "
        "figures of these flatter that strategy."
    )


def _there(results: Results, *arms: str) -> bool:
    return all(arm in results.arms for arm in (UNPRUNED, *arms))


# The answer


def _opening(results: Results) -> str:
    """The answer in two sentences."""
    ours = f"{DEFAULT}, 30%"
    if not _there(results, ALL_OFF, OTHER_ORDER, ours):
        return ""
    worth, found = results.against(ALL_OFF), results.against(ours)
    order = results.of_each_seed(OTHER_ORDER)
    return (
        f"All heads off cost a small model {worth.mean:.1f} % more bits per byte, after it was trained on; another "
        f"order of the batches changes up to {_largest(order)} %. With 30 % of its heads off by the default it has "
        f"{found} % more than unpruned, {_share(found, worth):.1f} % of what all heads are worth. All figures stand "
        "[below](#is-it-real)."
    )


def _scale(results: Results) -> str:
    """What all heads are worth, and what chance changes, beside what the default costs."""
    if not _there(results, ALL_OFF, OTHER_ORDER):
        return ""
    worth = results.against(ALL_OFF)
    order, seeds = results.of_each_seed(OTHER_ORDER), results.between_seeds()
    rows = [
        ["all heads off, at once", str(results.off()), ""],
        ["all heads off, and fine-tuned as all others", str(worth), "100 %"],
        ["another order of the batches", _chance(order), ""],
        ["another seed", _chance(seeds), ""],
    ]
    for level in LEVELS:
        arm = f"{DEFAULT}, {level:.0%}"
        if arm in results.arms:
            found = results.against(arm)
            rows.append([f"{level:.0%} of the heads off by {DEFAULT}", str(found), f"{_share(found, worth):.1f} %"])
    note = (
        "Bits per byte of a small model, per cent more than the unpruned one's after as many steps. Behind chance "
        "stand the largest change of all seeds, and the root of the mean square. An arm that costs less than chance "
        "changes is not told from the unpruned model by one run."
    )
    heads = ["what changes", "bits per byte, %", "of what all heads are worth"]
    return f"{table(heads, rows)}\n\n{note}"


def _share(found: Interval, worth: Interval) -> float:
    return 100 * found.mean / worth.mean if worth.mean else float("nan")


def _chance(values: Sequence[float]) -> str:
    """The largest of the seeds' changes, and the root of their mean square; of one seed there are none."""
    return f"{_largest(values)} at most, {_typical(values)} typically" if any(values) else "-"


def _largest(values: Sequence[float]) -> str:
    return f"{max(abs(value) for value in values):.2f}"


def _typical(values: Sequence[float]) -> str:
    return f"{float(np.sqrt(np.mean(np.square(values)))):.2f}"


def _targets(results: Results, margins: Mapping[str, float]) -> str:
    """Each, told by code as met or missed."""
    rows = [*_not_worse(results, margins), *_beats_draws(results), *_beats_smaller(results), *_halves(results)]
    rows += [*_pays(results), *_adds(results)]
    return "### Targets\n\n" + table(["target", "measured", ""], rows) if rows else ""


def _not_worse(results: Results, margins: Mapping[str, float]) -> list[list[str]]:
    rows = []
    for arm, margin in margins.items():
        if _there(results, arm):
            found = results.against(arm)
            said = {"yes": "met", "no": "missed", "undecided": "undecided"}[found.not_worse(margin)]
            rows.append([f"{arm}: not worse than unpruned by {margin:g} %", f"{found} %", said])
    return rows


def _beats_draws(results: Results) -> list[list[str]]:
    """The default against each random draw, interval by interval."""
    rows = []
    for level in ("30%", "50%"):
        ours, draws = f"{DEFAULT}, {level}", [f"{name}, {level}" for name in RANDOM]
        if _there(results, ours, *draws):
            found = [results.against(ours, draw) for draw in draws]
            below = sum(one.high < 0 for one in found)
            said = f"{below} of {len(draws)}; nearest: {max(found, key=lambda one: one.mean)} %"
            rows.append([f"{DEFAULT} below each random draw at {level}, clear of 0", said, _met(below == len(draws))])
    return rows


def _beats_smaller(results: Results) -> list[list[str]]:
    rows = []
    for level in LEVELS:
        ours, smaller = f"{DEFAULT}, {level:.0%}", f"{SMALLER}, {level:.0%}"
        if _there(results, ours, smaller):
            found = results.against(ours, smaller)
            rows.append([f"{ours} below {smaller}, clear of 0", f"{found} %", _met(found.high < 0)])
    return rows


def _halves(results: Results) -> list[list[str]]:
    """A teacher halves what pruning cost: against the unpruned model alone, and taught in the same way."""
    rows = []
    for how in (FROZEN, FINISHED):
        arm = f"{HALVED}, {how}"
        if not _there(results, HALVED, arm, f"{UNPRUNED}, {how}"):
            continue
        cost, left = results.against(HALVED), results.against(arm)
        fair, over_half = results.against(arm, f"{UNPRUNED}, {how}"), _over_half(results, arm)
        said = f"{cost.mean:+.2f} becomes {left} %; beside the unpruned model, {how} too, {fair} %"
        met = over_half.high < 0 and fair.mean <= cost.mean / 2
        rows.append([f"{HALVED}: {how}, half of what pruning cost or less", said, _met(met)])
    return rows


def _over_half(results: Results, arm: str) -> Interval:
    """Per cent that an arm has more than the middle between unpruned and HALVED."""
    seeds = sorted(set.intersection(*(set(results.arms[name]) for name in (arm, HALVED, UNPRUNED))))
    middle = (results.nats(HALVED, seeds) + results.nats(UNPRUNED, seeds)) / 2
    return change(results.nats(arm, seeds), middle)


def _pays(results: Results) -> list[list[str]]:
    rows = []
    for other in (criteria.EVENLY, criteria.DRAWN):
        if _there(results, criteria.BY_LOSS, other):
            found = results.against(criteria.BY_LOSS, other)
            said = f"pruning when the loss is stable, below as many prunings {other}, clear of 0"
            rows.append([said, f"{found} %", _met(found.high < 0)])
    return rows


def _adds(results: Results) -> list[list[str]]:
    found = _by_judge(results)
    if not found:
        return []
    more = found[judges.NETWORK] - found[judges.TAYLOR]
    said = f"{_spearman(found[judges.NETWORK])} against {_spearman(found[judges.TAYLOR])}"
    target = f"the controller's network knows more of held-out heads than {judges.TAYLOR}, by {ADDS:g} in each seed"
    return [[target, said, _met(bool((more >= ADDS).all()))]]


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def _sentences(results: Results) -> str:
    return " ".join(part for part in (deciding(results), _controller(results)) if part)


def deciding(results: Results) -> str:
    """Does deciding by the loss pay?"""
    others = (criteria.EVENLY, criteria.DRAWN)
    if not _there(results, criteria.BY_LOSS, *others):
        return ""
    evenly, drawn = (results.against(criteria.BY_LOSS, other) for other in others)
    figures = f"{evenly} % bits per byte against evenly spread prunings, {drawn} % against drawn ones"
    if max(evenly.high, drawn.high) < 0:
        return f"Deciding by the loss pays: {figures}."
    if evenly.low > 0 or drawn.low > 0:
        return f"Deciding by the loss does not pay, it costs: {figures}."
    return f"Deciding by the loss does not pay: no gain was seen ({figures})."


def _controller(results: Results) -> str:
    if not (found := _by_judge(results)):
        return ""
    network, taylor = found[judges.NETWORK].mean(), found[judges.TAYLOR].mean()
    if network >= taylor + ADDS:
        return ""
    return (
        f"The controller's network adds nothing to the Taylor score that it is given ({network:.2f} against "
        f"{taylor:.2f}), so nothing is claimed for it."
    )


# All figures


def _before(results: Results) -> str:
    levels = list(results.scores[0]["strategies"][DEFAULT]["levels"])
    rows = []
    for name in results.strategies:
        values = [f"{np.mean(results.before(name, level)):+.2f}" for level in levels]
        rows.append([name, *values, f"{results.of(name, 'spearman'):.2f}", f"{results.of(name, 'seconds'):.1f}"])
    every = {level: [results.before(draw, level) for draw in RANDOM] for level in levels}
    for name, of in (("random, mean of 5", np.mean), ("random, best of 5", _best)):
        rows.append([name, *(f"{of(every[level]):+.2f}" for level in levels), "", ""])
    heads = ["strategy", *(f"{float(level):.0%} of heads" for level in levels), "Spearman", "CPU s"]
    return (
        "### Before fine-tuning\n\nBits per byte, per cent more than the whole model's at that step, mean over the "
        "seeds. Spearman: rank correlation with leaving one head out. The best draw is that of each seed.\n\n"
        + table(heads, rows)
    )


def _best(values: Sequence[Sequence[float]]) -> float:
    """(draws, seeds) -> mean over the seeds of the lowest."""
    return float(np.min(values, axis=0).mean())


def _after(results: Results) -> str:
    arms = [arm for arm in results.arms if arm not in criteria.ARMS]
    if not arms or not _there(results):
        return ""
    heads = ["arm", "bits per byte", "change, %", "parameters", "ceiling", "faster", "steps", "CPU s"]
    note = (
        "Against the unpruned model. The level is the share of the heads that are gone. Ceiling: how many times faster "
        "FLOPs allow a forward to be; faster: measured, the whole model and the pruned one in turns in one process. "
        "CPU s: of the steps in this row (other jobs ran beside it). `rising`: the level rises by a cubic while the "
        "model trains, from the middle of its first training on. `smaller from scratch` has as many heads from the "
        "beginning, and all steps."
    )
    return f"### After fine-tuning\n\n{note}\n\n{table(heads, [_row(results, arm) for arm in arms])}"


def _row(results: Results, arm: str) -> list[str]:
    return [
        arm if arm != UNPRUNED else f"**{arm}**",
        f"{results.bits(arm):.4f}",
        "" if arm == UNPRUNED else str(results.against(arm)),
        f"{results.mean(arm, 'parameters') / results.mean(arm, 'parameters_whole'):.1%}",
        f"{results.mean(arm, 'flops_whole') / results.mean(arm, 'flops'):.2f}",
        f"{results.mean(arm, 'speedup'):.2f}",
        f"{results.mean(arm, 'steps'):.0f}",
        f"{results.mean(arm, 'training_seconds'):.0f}",
    ]


def _pairs(results: Results) -> str:
    """The default against each draw, and against a smaller model."""
    rows = []
    for level in LEVELS:
        ours = f"{DEFAULT}, {level:.0%}"
        others = [f"{name}, {level:.0%}" for name in (SMALLER, *RANDOM)]
        there = [other for other in others if _there(results, ours, other)]
        rows += [[ours, other, str(results.against(ours, other))] for other in there]
    if not rows:
        return ""
    return f"### {DEFAULT} against what it must beat\n\n" + table(["arm", "against", "change, %"], rows)


def _recovery(results: Results) -> str:
    """With a teacher, with its controls."""
    rows = []
    for name in (UNPRUNED, HALVED):
        for arm in (name, f"{name}, longer", f"{name}, {FROZEN}", f"{name}, {FINISHED}"):
            if _there(results, arm):
                change = "" if arm == UNPRUNED else str(results.against(arm))
                cost = [f"{results.mean(arm, 'steps'):.0f}", f"{results.mean(arm, 'training_seconds'):.0f}"]
                rows.append([arm, f"{results.bits(arm):.4f}", change, *cost])
    if len(rows) < 3:
        return ""
    note = (
        "`taught`: the loss is half the cross-entropy and half 4 KL(teacher || student) at temperature 2; the teacher "
        "is the unpruned model as it was when heads went, or as its own training left it (`finished`). The unpruned "
        "model that is taught by itself, and as many CPU seconds without a teacher (`longer`, measured in turns), "
        "are the controls."
    )
    heads = ["arm", "bits per byte", "change, %", "steps", "CPU s"]
    return f"### Recovery with a teacher\n\n{note}\n\n{table(heads, rows)}"


def _when(results: Results, options: Mapping[str, Any]) -> str:
    if not _there(results, *criteria.ARMS):
        return ""
    rows = []
    for arm in criteria.ARMS:
        found = results.arms[arm].values()
        steps = "; ".join(", ".join(map(str, record["pruned_at"])) for record in found)
        change = "" if arm == criteria.WHOLE else str(results.against(arm, criteria.WHOLE))
        went_back = sum(record["went_back"] for record in found)
        heads = f"{results.mean(arm, 'heads'):.1f}"
        rows.append([arm, f"{results.bits(arm):.4f}", change, heads, steps, str(went_back)])
    note = (
        f"`plasticity_dynamic.yaml` in small: a decoder with {options['model']}, {options['steps']} steps, of which "
        f"the first {options['training']} are before the first warm-up; {options['cycles']} cycles, each with a "
        f"warm-up of {options['warmup']} steps at most and {options['finetuning']} of fine-tuning, take "
        f"{options['level']:.0%} of the heads. The arms differ only in the steps at which heads go, which stand in the "
        "table, seed by seed."
    )
    heads_of_table = ["heads go", "bits per byte", "change, %", "heads left", "at steps, by seed", "went back"]
    return f"### When heads go\n\n{note} {deciding(results)}\n\n{table(heads_of_table, rows)}"


def replayed(logs: Sequence[Path]) -> str:
    """Each rule of stability on the losses of real trainings."""
    found: dict[str, dict[tuple[str, int], list[float]]] = {}
    for folder in logs:
        for record in store.records(folder, LOSSES):
            if record["kind"] in REPLAYED and _is_replayed(record):
                name = f"{record['name']}, {record['kind']}"
                found.setdefault(name, {})[folder.name, record["seed"]] = record["losses"]
    if not found:
        return ""
    n = sum(len(of_seeds) for of_seeds in found.values())
    note = (
        f"{n} trainings of the arms, without a known plateau: each rule is asked after every step. What the loss still "
        f'gains is its mean over the {stabilization.AROUND} steps up to the first "stable", less that over the last '
        f"{stabilization.AROUND}; the last column is its share of the whole fall. Under a cosine the loss falls "
        "because the rate does, which no rule can know before."
    )
    table = stabilization.trainings({name: of_seeds.values() for name, of_seeds in found.items()})
    return f"### When the rules fire on real trainings\n\n{note}\n\n{table}"


def _is_replayed(record: Record) -> bool:
    """Of the smaller models one, with the fewest heads."""
    return "heads" not in record["name"] or record["name"].endswith(f"{1 - LEVELS[-1]:.0%} of its heads")


def _by_judge(results: Results) -> dict[str, np.ndarray]:
    """(S,) of each."""
    return judges.means([record["judges"] for record in results.scores]) if results.scores else {}


def _judges(results: Results) -> str:
    if not (found := _by_judge(results)):
        return ""
    rows = [[name, _spearman(values)] for name, values in found.items()]
    note = (
        "Spearman's correlation with the measured damage of the half of the heads that the network did not learn from: "
        "mean over the splits, then over the seeds, and the lowest and highest seed. The network is given entropy, "
        "gradient, Taylor score, age and depth of each head."
    )
    return f"### The controller\n\n{note}\n\n{table(['judge', 'Spearman'], rows)}"


def _spearman(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


# The picture


def draw(results: Results, path: Path) -> None:
    """Change of bits per byte over the level, before and after fine-tuning: strategies, and the range of the draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_before(results, left)
    shown = [arm for arm in results.arms if arm not in (UNPRUNED, *criteria.ARMS)] if _there(results) else []
    for y, arm in enumerate(reversed(shown)):
        found = results.against(arm)
        colour = "#c1440e" if arm.startswith(DEFAULT) else "#999999" if arm.startswith("random") else "#2f6ca3"
        if np.isfinite(found.low):
            right.plot([found.low, found.high], [y, y], color=colour, linewidth=1.6)
        right.plot([found.mean], [y], "o", color=colour, markersize=3.5)
    right.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=5.5)
    right.axvline(0, color="#444444", linewidth=0.8)
    right.set(title="after fine-tuning, 95 % intervals", xlabel="% more bits per byte than unpruned")
    figure.savefig(path, dpi=130)


def _draw_before(results: Results, axes: Any) -> None:
    levels = list(results.scores[0]["strategies"][DEFAULT]["levels"])
    x = [100 * float(level) for level in levels]
    every = np.asarray([[np.mean(results.before(draw, level)) for level in levels] for draw in RANDOM])
    axes.fill_between(x, every.min(0), every.max(0), color="#bbbbbb", alpha=0.5, label="random, range of 5 draws")
    for i, name in enumerate(results.strategies):
        values = [np.mean(results.before(name, level)) for level in levels]
        is_default = name == DEFAULT
        style = {"color": "#c1440e" if is_default else f"C{i % 10}", "linewidth": 2.6 if is_default else 1.2}
        axes.plot(x, values, marker="o", markersize=3, label=name, zorder=5 if is_default else 2, **style)
    axes.set(title="before fine-tuning", xlabel="% of heads removed", ylabel="% more bits per byte than unpruned")
    axes.legend(fontsize=7)
