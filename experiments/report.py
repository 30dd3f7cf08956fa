"""From the file of results to a page of tables and a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import baselines, counted, entry, gated, plans, sections, storing_page
from experiments.arguments import name_of, told
from experiments.plans import commit
from experiments.statistics import HOW, Interval, change
from experiments.store import Record, records

SECTION = "## Does it help?"  # the last one of its page
PLAIN, FURTHER, LONGER = "no memory", "further training", "longer context"
AS_LONG = "further training, as long"  # in CPU seconds, as the dearest of the trained arms
BASELINES = (FURTHER, AS_LONG, LONGER, *counted.ARMS, baselines.DYNAMIC, baselines.PPMD)  # what a memory must beat
MEMORIES = ("cache", "concat", "attention", "knn", "knn + cache", "trime", *gated.ARMS)
ARMS = (PLAIN, *BASELINES, *MEMORIES)
TRAINED = (LONGER, "concat", "attention", "trime")  # as much further as the arm without a memory

COSTS = (  # what, its name in the records, factor, the most there may be, unit
    ("tokens hurt", "hurt", 100, 30, "%"),
    ("memory", "memory_bytes", 1e-6, 5, "MB"),
    ("time of a token", "seconds_per_token", 1000, 0.5, "ms"),
)


def base_of(arm: str) -> str:
    """What an arm is compared with."""
    return FURTHER if arm in (*TRAINED, AS_LONG) else PLAIN


class Results:
    """Records of all arms and seeds in a folder."""

    def __init__(self, folder: Path):
        self.by_arm: dict[str, list[Record]] = defaultdict(list)
        for record in records(folder):
            self.by_arm[record["arm"]].append(record)

    def nats(self, arm: str, seeds: Sequence[int]) -> np.ndarray:
        """(S, D) sums over each document."""
        found = {record["seed"]: record["nats"] for record in self.by_arm[arm]}
        return np.array([found[seed] for seed in seeds])

    def has_tokens(self, arm: str) -> bool:
        """Whether it says something of each token; a compressor does not."""
        return all("nats" in record for record in self.by_arm[arm])

    def seeds(self, arm: str) -> list[int]:
        return sorted(record["seed"] for record in self.by_arm[arm])

    def mean(self, arm: str, name: str) -> float:
        values = [record[name] for record in self.by_arm[arm] if record.get(name) is not None]
        return float(np.mean(values)) if values else float("nan")

    def change(self, arm: str, base: str) -> Interval:
        """Per cent of bits per byte, over the seeds that both have."""
        seeds = sorted(set(self.seeds(arm)) & set(self.seeds(base)))
        return change(self.nats(arm, seeds), self.nats(base, seeds))


def write(folder: Path, plan: dict[str, Any], out: Path, *, command: str) -> str:
    """The last section of `out`/memory.md, which is also printed; the picture lies in `out`/images, the records in
    `out`/results."""
    results, rules = Results(folder), plans.Rules(**plan["rules"])
    (out / "images").mkdir(parents=True, exist_ok=True)
    picture = draw(results, out / "images" / "memory_size.png")
    parts = [
        SECTION,
        _setting(results, plan, command),
        entry.told(folder, rules),
        plans.told(folder, rules, [arm for arm in results.by_arm if not arm.startswith("knn of ")]),
        _main_table(results),
        _trainings(results),
        _targets(results, rules.margins),
        storing_page.section(results, plan["storing"]["budgets"], plan["storing"]["of_attention"]),
        _search_table(results),
        _choices(results),
        "![Bits per byte against the size of the datastore](images/memory_size.png)" if picture else "",
    ]
    page = "\n\n".join(part for part in parts if part) + "\n"
    sections.put(out / "memory.md", SECTION, page)
    plans.publish(folder, rules, out / "results" / "memory.jsonl")
    return page


def _setting(results: Results, plan: dict[str, Any], command: str) -> str:
    training, model = plan["training"], plan["model"]
    chosen, scored = told(plan)
    first = results.by_arm[PLAIN][0]
    updates = f"{training['steps']} steps of {training['batch_size']} x {training['block_size']} tokens"
    return (
        f"Written by `{command}` at commit {commit()}. "
        f"A decoder with {model} and a BPE of {plan['vocab_size']:,} learned {name_of(plan['train'])} from scratch "
        f"in {updates} at most. The arms that are trained go on from it for {plan['further']['steps']} steps, in the "
        "same data order where their memory allows it (`longer context` cuts the text elsewhere). The best state of "
        f"each training was kept, and the weights of the mixtures were chosen, on {chosen}. Scored is "
        f"{scored}: {first['tokens']:,} tokens of {len(first['nats'])} documents, on which "
        "nothing was chosen. Every arm reads it once, in blocks without overlap, and is scored on the same tokens. "
        f"Seeds: {', '.join(map(str, results.seeds('no memory')))}."
    )


def _main_table(results: Results) -> str:
    head = (
        "| arm | seeds | parameters | bits per byte | change, % [95 %] | tokens helped / hurt, % "
        "| bytes of memory | ms per token |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    rows = [_row(results, arm) for arm in ARMS if results.by_arm[arm]]
    note = (
        "Bits per byte of the test text, the mean over the seeds, whose standard deviation stands behind ±. "
        "Changes are to no memory with the same seed; of longer context, concat, attention and trime, which train "
        "further from that model, to `further training`, which does as many steps without a memory (`as long`: for as "
        "many CPU seconds as the dearest of them). "
        f"{HOW} Helped and hurt: by more than 0.01 nats, against no memory. ms per token: CPU time of one thread in "
        "fp32, writing included. The arms before `cache` are what a memory must beat: as many steps more; a context "
        "four times as long, trained on as many tokens; "
        "5-grams of the training text alone, with the model, and with its cache too, their weights by "
        "expectation-maximisation on the text to choose on; the model that learns what it has read (dynamic "
        "evaluation); and PPMd, which has read the training text. The pointer is a cache with a gate for each token, a "
        "metric and a bias by age, learned on the rest of the text to choose on; the mixture has such gates for "
        "counts, cache and pointer."
    )
    return "\n".join(["### Arms", "", head, *rows, "", note])


def _row(results: Results, arm: str) -> str:
    bpb = np.array([record["test_bpb"] for record in results.by_arm[arm]])
    plain = arm == PLAIN
    compared = not plain and results.has_tokens(arm)
    helped, hurt = (100 * results.mean(arm, name) for name in ("helped", "hurt"))
    cells = [
        arm,
        str(len(bpb)),
        f"{results.mean(arm, 'parameters'):,.0f}",
        f"{bpb.mean():.4f} ± {bpb.std(ddof=1) if len(bpb) > 1 else 0:.4f}",
        str(results.change(arm, base_of(arm))) if compared else "",
        f"{helped:.1f} / {hurt:.1f}" if compared else "",
        f"{results.mean(arm, 'memory_bytes'):,.0f}",
        f"{1000 * results.mean(arm, 'seconds_per_token'):.3f}" if compared or plain else "",
    ]
    return f"| {' | '.join(cells)} |"


def _trainings(results: Results) -> str:
    """What each cost, and whether it went on until its validation fell no more."""
    head = ["| trained arm | steps | best at step | CPU s | trained to its end |", "| --- | --- | --- | --- | --- |"]
    trained = [arm for arm in ARMS if any("last_step" in record for record in results.by_arm[arm])]
    rows = [_training(arm, results.by_arm[arm]) for arm in trained]
    note = (
        "Means over the seeds; CPU s: of training alone, validation apart. A training whose best state is the last "
        "one might have become better: it was not trained to its end."
    )
    return "\n".join(["### Trainings", "", *head, *rows, "", note]) if rows else ""


def _training(arm: str, found: Sequence[Record]) -> str:
    last, best, seconds = (np.mean([r[name] for r in found]) for name in ("last_step", "best_step", "train_seconds"))
    to_the_end = sum(record["best_step"] < record["last_step"] for record in found)
    said = f"{to_the_end} of {len(found)}"
    cells = [arm, f"{last:.0f}", f"{best:.0f}", f"{seconds:.0f}", said if to_the_end == len(found) else f"**{said}**"]
    return f"| {' | '.join(cells)} |"


def _targets(results: Results, margins: Mapping[str, float]) -> str:
    """Each with what was measured."""
    arms = [arm for arm in MEMORIES if results.by_arm[arm]]
    if not {"knn", "knn + cache", "trime", "cache", *margins} <= set(arms):
        return ""
    # read off one model: the arms that are trained have more steps than what they would be compared with
    best = min((arm for arm in arms if arm not in TRAINED), key=lambda arm: results.mean(arm, "tuning_nats"))
    rows = [f"| {name} | {found} | {'met' if met else 'missed'} |" for name, found, met in _changes(results, best)]
    for arm in dict.fromkeys((best, gated.MIXTURE)):
        rows += _costs(results, arm)
    for arm, margin in margins.items():
        found = results.change(arm, base_of(arm))
        rows.append(f"| {arm} not worse than {base_of(arm)} by {margin:g} % | {found} | {found.not_worse(margin)} |")
    return "\n".join(["### Targets", "", "| target | change, % [95 %], or cost | |", "| --- | --- | --- |", *rows])


def _changes(results: Results, best: str) -> list[tuple[str, Interval, bool]]:
    """What is to be below what, by how much it is, and whether it is enough."""
    knn, top = results.change("knn", PLAIN), results.change(best, PLAIN)
    found = [
        ("knn at least 5 % below no memory, interval clear of zero", knn, knn.mean <= -5 and knn.high < 0),
        (f"the arm that is best on the text to choose on ({best}) at least 10 % below no memory", top, top.mean <= -10),
    ]
    if results.by_arm[counted.WITH_CACHE]:
        beyond = results.change(best, counted.WITH_CACHE)
        name = f"{best} at least 2 % below {counted.WITH_CACHE}, interval clear of zero"
        found.append((name, beyond, beyond.mean <= -2 and beyond.high < 0))
    trained = [(arm, base) for arm in ("trime", "attention") for base in (FURTHER, AS_LONG)]
    pairs = [("knn + cache", "cache"), (gated.POINTER, "cache"), *trained]
    for arm, base in (pair for pair in pairs if all(results.by_arm[one] for one in pair)):
        less = results.change(arm, base)
        found.append((f"{arm} below {base}, interval clear of zero", less, less.high < 0))
    return found


def _costs(results: Results, arm: str) -> list[str]:
    """Rows: what an arm may cost, and what it does; none where that was not measured."""
    found = [(what, factor * results.mean(arm, name), most, unit) for what, name, factor, most, unit in COSTS]
    return [
        f"| {arm}: {what} at most {most:g} {unit} | {value:.3g} {unit} | {'met' if value <= most else 'missed'} |"
        for what, value, most, unit in found
        if not np.isnan(value)
    ]


def _search_table(results: Results) -> str:
    found = [record for record in results.by_arm["knn"] if "recall_k" in record]
    if not found:
        return ""

    def mean(name: str) -> float:
        return float(np.mean([record[name] for record in found]))

    rows = [
        f"| exact | 1 | 1 | {1e6 * mean('exact_seconds'):.0f} |",
        f"| the arm's index | {mean('recall_10'):.4f} | {mean('recall_k'):.4f} | {1e6 * mean('search_seconds'):.0f} |",
    ]
    head = ["| search | recall of the 10 nearest | of all k | CPU µs per query |", "| --- | --- | --- | --- |"]
    return "\n".join([f"### Search among {mean('entries'):,.0f} entries", "", *head, *rows])


def _choices(results: Results) -> str:
    """What was chosen, seed by seed."""
    rows = []
    for arm in ARMS:
        for record in results.by_arm[arm]:
            names = ("val_bpb", "lr", "weights", "temperature", "theta", "tuning_nats")
            known = [f"{name} {_short(record[name])}" for name in names if record.get(name) is not None]
            rows.append(f"| {arm} | {record['seed']} | {', '.join(known)} |")
    head = ["| arm | seed | chosen, or found, on the text for it |", "| --- | --- | --- |"]
    return "\n".join(["### Choices", "", *head, *rows])


def _short(value: Any) -> str:
    return ", ".join(f"{x:.3g}" for x in value) if isinstance(value, Sequence) else f"{value:.4g}"


def draw(results: Results, path: Path) -> bool:
    """Bits per byte against the size of the datastore; False without the figures."""
    from matplotlib.figure import Figure  # a second of import, only where a picture is drawn

    found = [record for arm, many in results.by_arm.items() if arm.startswith("knn of ") for record in many]
    if not found:
        return False
    found.sort(key=lambda record: record["entries"])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    sizes, bpb = [r["entries"] for r in found], [r["bpb"] for r in found]
    axes.semilogx(sizes, bpb, color="#c1440e", marker="o", label="kNN")
    axes.axhline(found[0]["plain_bpb"], color="#8fb4d9", linewidth=1.6, label=PLAIN)
    axes.set(title="kNN-LM: how much the size of its datastore matters", xlabel="entries", ylabel="bits per byte")
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True
