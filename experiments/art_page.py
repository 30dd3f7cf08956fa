"""From the results of experiments.continual and experiments.novelty to the last section of docs/art.md.

Shapes: P points of a training, D documents.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import entry, plans, store, untrained
from experiments.arguments import name_of, told
from experiments.arms import ARMS, ART_OPTIONS, EWC_ARM, PLAIN, RANDOM
from experiments.levels import REFERENCE, WITHIN, at_level, crossing
from experiments.plans import commit
from experiments.statistics import HOW, Interval, change, half_width

SECTION = "## Do the promises hold?"  # the last one of its page
PICTURE = "images/forgetting.png"
LESS = 25.0  # per cent that ART is to forget less than plain fine-tuning
DETECTS = 0.95  # AUROC that it is to reach
COLOURS = ("#444444", "#8fb4d9", "#5a8fc0", "#2f6ca3", "#17476f", "#c1440e", "#e0a080", "#3c8d40", "#8a5fb0", "#b0a030")
Records = list[store.Record]


@dataclass(frozen=True)
class Continual:
    """Results on the test texts."""

    by_arm: dict[str, Records]

    @classmethod
    def of(cls, folder: Path) -> Continual:
        by_arm: dict[str, Records] = defaultdict(list)
        for record in store.records(folder):
            if record["trial"] is None:
                by_arm[record["arm"]].append(record)
        return cls({arm: sorted(by_arm[arm], key=lambda r: int(r["seed"])) for arm in ARMS if by_arm[arm]})

    def level(self, seed: int) -> float:
        """Bits per byte of the second domain that arms are compared at."""
        plain = next(record for record in self.by_arm[PLAIN] if record["seed"] == seed)
        return WITHIN * float(plain["second"][-1])

    def forgotten(self, arm: str, beside: str | None = None) -> np.ndarray | None:
        """(S, D) nats of the first domain's documents at the level, less those before.

        Of the seeds that another arm has too. None where a seed never learns as much, or there are no results.
        """
        seeds = {record["seed"] for record in self.by_arm.get(beside or arm, [])}
        mine = [record for record in self.by_arm.get(arm, []) if record["seed"] in seeds]
        found = [_at(record, self.level(record["seed"])) for record in mine]
        there = [one for one in found if one is not None]
        return np.stack(there) if found and len(there) == len(found) else None

    def scale(self) -> float:
        """Nats of the first domain that make one bit per byte."""
        return float(np.sum(self.by_arm[PLAIN][0]["scale"]))

    def less(self, arm: str, base: str) -> Interval | None:
        """Per cent that an arm forgets less than another."""
        mine, others = self.forgotten(arm, base), self.forgotten(base, arm)
        if mine is None or others is None:
            return None
        return -change(mine, others)

    def mean(self, arm: str, what: str) -> np.ndarray:
        return np.mean([record[what] for record in self.by_arm[arm]], axis=0)


def _at(record: store.Record, level: float) -> np.ndarray | None:
    found = crossing(record["second"], level)
    if found is None:
        return None
    i, share = found
    nats = np.asarray(record["nats"])  # (P, D)
    return (1 - share) * nats[i] + share * nats[i + 1] - nats[0]


def write(folder: Path, plan: dict[str, Any], out: Path, *, command: str) -> str:
    """The last section of `out`/art.md, which is also printed; the picture lies in `out`/images."""
    continual, rules = Continual.of(folder), plans.Rules(**plan["rules"])
    planned = plans.told(folder, rules, list(continual.by_arm))
    parts = [SECTION, _setting(plan, command), entry.told(folder, rules), planned]
    if continual.by_arm:
        (out / PICTURE).parent.mkdir(parents=True, exist_ok=True)
        draw(continual, out / PICTURE)
        picture = f"![What is forgotten of the first domain against what is learned of the second]({PICTURE})"
        parts += [
            _arms(continual, probes=plan["probes"], steps=plan["steps"]),
            picture,
            untrained.told(folder),
            _targets(continual, rules.margins[EWC_ARM]),
            _trials(store.records(folder)),
        ]
    found = store.records(folder / "novelty")
    if found:
        parts += [_novelty(found), _novelty_targets(found), _clusters(found)]
    page = "\n\n".join(part for part in parts if part) + "\n"
    path = out / "art.md"
    before = path.read_text(encoding="utf-8").partition(SECTION)[0] if path.is_file() else ""
    path.write_text(before + page, encoding="utf-8")
    return page


def _setting(plan: dict[str, Any], command: str) -> str:
    first, second = name_of(plan["train"]), name_of(plan["second"])
    (chosen, scored), before = told(plan), plan["before"]
    return (
        f"Written by `{command}` at commit {commit()}. A decoder with {plan['model']} and a BPE of "
        f"{plan['vocab_size']:,}, trained on {first}, learned that text from scratch in {before['steps']} steps of "
        f"{before['batch_size']} x {before['block_size']} tokens, and then {second} in {plan['steps']} of them. All "
        f"arms of a seed start from the same model and see the same batches in the same order. Everything is chosen on "
        f"{chosen}, and on the first half of the last fifth of {second}; nothing is chosen on what is scored, "
        f"{plan['blocks']} blocks, evenly spread, of {scored}, and as many of the last tenth of "
        f"{second}. Seeds: {', '.join(map(str, plan['seeds']))}."
    )


# Continual learning


def _arms(found: Continual, *, probes: int, steps: int) -> str:
    head = (
        "| arm | learning rate, strength | first domain: before | at the level | forgets less than plain, % [95 %] "
        "| at the end | second domain: before | at the end | backward transfer | drift of the probes | steps | CPU s |"
    )
    rows = [_row(found, arm, steps) for arm in found.by_arm]
    note = (
        "Bits per byte of the test texts, means over the seeds; behind ± half of a 95 % interval over them "
        f"(Student's t). The level: where an arm has come to {WITHIN} times the bits per byte of the second domain"
        " that plain fine-tuning ends at, interpolated between the points at which it was scored. "
        f"{HOW} Documents are the first domain's articles. Backward "
        "transfer: bits per byte of the first domain before less those at the end (negative: forgotten; "
        f"forgetting is its opposite). Drift of the probes: mean 1 - cosine of the mean last states of {probes} "
        "texts of the first domain, less their common mean, from before to the end. CPU s: of one training, its "
        "categories included and scoring apart. `random texts` is the arm above it with texts drawn at random in the "
        "place of the typical ones, and categories that learn no more. The frozen arm's new head starts as the old "
        "one, which the "
        "first domain keeps: it forgets nothing by definition."
    )
    return "\n".join(["### Continual learning", "", head, _rule(head), *rows, "", note])


def _rule(head: str) -> str:
    return "| " + " | ".join(["---"] * (head.count("|") - 1)) + " |"


def _row(found: Continual, arm: str, steps: int) -> str:
    record = found.by_arm[arm][0]
    first, second = found.mean(arm, "first"), found.mean(arm, "second")
    forgotten = found.forgotten(arm)
    less = found.less(arm, PLAIN)
    cells = [
        arm,
        f"{record['lr']:g}" + (f", {record['strength']:g}" if record["strength"] else ""),
        f"{first[0]:.3f}",
        "never there" if forgotten is None else f"{first[0] + forgotten.mean(0).sum() / found.scale():.3f}",
        "" if arm == PLAIN or less is None else str(less),
        _with_spread([record["first"][-1] for record in found.by_arm[arm]]),
        f"{second[0]:.3f}",
        _with_spread([record["second"][-1] for record in found.by_arm[arm]]),
        f"{first[0] - first[-1]:+.3f}",
        f"{float(found.mean(arm, 'drift')):.3f}",
        f"{steps}",
        f"{float(found.mean(arm, 'train_seconds')):.0f}",
    ]
    return _line(cells)


def _with_spread(values: list[float]) -> str:
    """Mean ± half of the 95 % interval of a few seeds."""
    return f"{np.mean(values):.3f}" + (f" ± {half_width(values):.3f}" if len(values) > 1 else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _targets(found: Continual, margin: float) -> str:
    """ART's arms against plain fine-tuning and EWC."""
    rows = []
    for arm in (name for name in ART_OPTIONS if name in found.by_arm and name != RANDOM):
        plain, ewc = found.less(arm, PLAIN), found.less(arm, EWC_ARM)
        rows.append(
            _line(
                [
                    arm,
                    "never at the level" if plain is None else str(plain),
                    "met" if plain is not None and plain.mean >= LESS else "**missed**",
                    "" if ewc is None else str(ewc),
                    "**missed**" if ewc is None else (-ewc).not_worse(margin),
                ]
            )
        )
    head = f"| target | forgets {LESS:g} % less than plain | | at most {margin:g} % more than EWC: less, % | |"
    return "\n".join([head, _rule(head), *rows])


def _trials(records: Records) -> str:
    """What was tried on validation, and what of it was chosen."""
    tried = [record for record in records if record["trial"] is not None]
    chosen = {record["arm"]: record["chosen"] for record in records if record["trial"] is None}
    level = WITHIN * next(float(r["second"][-1]) for r in tried if r["arm"] == PLAIN and r["lr"] == REFERENCE.lr)
    rows = []
    for arm in ARMS:
        for record in sorted((r for r in tried if r["arm"] == arm), key=lambda r: int(r["trial"])):
            there = at_level(record, level)
            cells = [
                arm,
                f"{record['lr']:g}",
                f"{record['strength']:g}" if record["strength"] else "",
                "never there" if there is None else f"{there:.3f}",
                f"{record['first'][-1]:.3f}",
                f"{record['second'][-1]:.3f}",
                "chosen" if chosen.get(arm) == record["trial"] else "",
            ]
            rows.append(_line(cells))
    head = "| arm | learning rate | strength | first domain at the level | at the end | second at the end | |"
    note = f"On the texts to choose on, one seed; the level is {level:.3f} bits per byte of the second domain."
    return "\n".join(["### Trials", "", note, "", head, _rule(head), *rows])


def draw(found: Continual, path: Path) -> None:
    """What an arm has forgotten when it has learned so much: down and to the right is better."""
    from matplotlib.figure import Figure  # a second of import, only where a picture is drawn

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for colour, arm in zip(COLOURS, found.by_arm, strict=False):
        first, second = found.mean(arm, "first"), found.mean(arm, "second")
        axes.plot(second[1:], first[1:] - first[0], color=colour, marker="o", markersize=4, label=arm)
    level = float(np.mean([found.level(record["seed"]) for record in found.by_arm[PLAIN]]))
    axes.axvline(level, color="#999999", linestyle=":", linewidth=1)
    axes.text(level, axes.get_ylim()[1], "level of the table ", ha="right", va="top", fontsize=8, color="#777777")
    axes.invert_xaxis()
    axes.set(
        title="What is forgotten for what is learned: down and to the right is better",
        xlabel="second domain, bits per byte (learned more: to the right)",
        ylabel="first domain, bits per byte above those before",
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


# Novelty and clusters


def _novelty(records: Records) -> str:
    found = [record for record in records if record["part"] == "novelty"]
    kinds = list(found[0]["auroc"])
    tables = []
    for length in sorted({int(record["length"]) for record in found}, reverse=True):
        head = "| detector | " + " | ".join(f"{kind}: AUROC, false alarms %" for kind in kinds) + " | holds |"
        rows = []
        for detector in dict.fromkeys(record["detector"] for record in found):
            mine = [r for r in found if r["detector"] == detector and r["length"] == length]
            cells = [_detected(mine, kind) for kind in kinds]
            rows.append(_line([detector, *cells, mine[0]["remark"]]))
        tables.append("\n".join([f"Sequences of {length} tokens:", "", head, _rule(head), *rows]))
    note = (
        f"Held-out sequences of the first domain ({found[0]['sequences']}) against as many of each other kind, "
        "means over the seeds, with half of a 95 % interval over them. What is scored is the second half of each new "
        "text: on the first, and on the text to choose on, the ART of the targets was chosen. A "
        "false alarm: a known sequence that "
        "scores as high as 95 % of the new ones do. Everything was fitted to the first domain's training text "
        "alone, on mean last states; `fine` is a vigilance of 0.97 (none), 0.8 (center) or 0.5 (whiten)."
    )
    return "\n\n".join(["### Novelty", *tables, note])


def _detected(records: Records, kind: str) -> str:
    each = [record["auroc"][kind] for record in records]
    spread = f" ± {half_width(each):.4f}" if len(each) > 1 else ""
    return f"{_auroc(records, kind):.4f}{spread}, {100 * _mean(records, 'false_alarms', kind):.1f}"


def _mean(records: Records, what: str, kind: str) -> float:
    return float(np.mean([record[what][kind] for record in records]))


def _auroc(records: Records, kind: str) -> float:
    return _mean(records, "auroc", kind)


def _novelty_targets(records: Records) -> str:
    """Of the longest sequences: the ART whose worst pair is best on what is not scored."""
    found = [r for r in records if r["part"] == "novelty"]
    length = max(int(r["length"]) for r in found)
    kinds = list(found[0]["auroc"])

    def of(detector: str, kind: str, what: str = "auroc") -> float:
        return _mean([r for r in found if r["detector"] == detector and r["length"] == length], what, kind)

    arts = [name for name in dict.fromkeys(r["detector"] for r in found) if "ART" in name]
    best = max(arts, key=lambda name: min(of(name, kind, "auroc_to_choose") for kind in kinds))
    above = sum(of(best, kind) > of("loss", kind) for kind in kinds)
    worst = min(of(best, kind) for kind in kinds)
    head = f"| target, {length} tokens | {best} (of {len(arts)} the one whose worst pair is best on other text) | |"
    rows = [
        _line([f"AUROC of at least {DETECTS} on each pair", f"{worst:.4f} on the worst", _met(worst >= DETECTS)]),
        _line(["above plain loss on two of three", f"on {above}", _met(above >= 2)]),
    ]
    return "\n".join([head, _rule(head), *rows])


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def _clusters(records: Records) -> str:
    found = [record for record in records if record["part"] == "clusters"]
    head = "| ART | clusters | who | purity: domain | NMI: domain | purity: document | NMI: document |"
    rows = []
    for art in dict.fromkeys(record["art"] for record in found):
        mine = [record for record in found if record["art"] == art]
        for who, name in (("art", "ART"), ("kmeans", "k-means")):
            values = [
                f"{np.mean([r[f'{who}_{measure}_{of}'] for r in mine]):.3f}"
                for of in ("domain", "document")
                for measure in ("purity", "nmi")
            ]
            rows.append(_line([art, f"{np.mean([r['clusters'] for r in mine]):.0f}", name, *values]))
    note = (
        f"{found[0]['texts']} sequences of 128 tokens of the first domain's test text, the second domain and "
        "source code (documents: articles, pieces of some 4,000 characters, files); mean last states, which ART "
        "saw once and k-means until it converged, with as many clusters. Means over the seeds."
    )
    return "\n".join(["### Clusters", "", head, _rule(head), *rows, "", note])
