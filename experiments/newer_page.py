"""The section of `experiments.newer`, and its results in docs/results.

Shapes: S seeds, D documents.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import baselines, entry, plans, report, sections
from experiments.statistics import HOW, Interval, change
from experiments.store import Record, records

SECTION = "## A text that the model has not seen"
TEXTS = "texts.json"
RESULTS = "memory_smollm2.jsonl"
PLAIN, LONG, COUNTED, KNN = "512 tokens of context", "2,048 tokens of context", "n-grams + cache", "kNN"
THREE = f"{KNN} + {COUNTED}, gated"
BEST = f"{KNN} + {COUNTED} + pointer, gated"
ORDER = (
    *(PLAIN, "n-grams alone", baselines.PPMD, "n-grams", "cache", "cache, gated"),
    *(COUNTED, f"{COUNTED}, gated", baselines.DYNAMIC, "pointer, gated"),
    *(LONG, KNN, f"{KNN}, storing", f"{KNN}, gated", f"{KNN}, storing, gated", f"{KNN} + {COUNTED}", THREE, BEST),
    *(f"2,048 + {COUNTED}, gated", f"2,048 + {KNN}", f"2,048 + {KNN}, gated", f"2,048 + {THREE}"),
)
NOTE = (
    "Bits per byte of what shares no run of 8 words with another document, the mean over the seeds, and of all tokens; "
    "helped and hurt: by more than 0.01 nats, against 512 tokens of context. A compressor knows no tokens: PPMd's "
    "change is that of whole documents. `n-grams`: counts of 5-grams of what is stored; `cache`: what came before in "
    "the document; `kNN, storing` stores what it has read of the document too. Weights are those of the model and of "
    "each other part; they and the temperatures are chosen on the documents for it. `gated`: weights of each token, by "
    "a softmax of a linear map of the model's entropy, how near the nearest states are and whether they agree, and how "
    "long a context the counts know. `pointer`: a cache whose metric and bias by age were learned on what is stored. "
    "Dynamic evaluation learns the documents to score one by one, and not what "
    f"is stored; it is done for one seed. {HOW}"
)


class Results:
    """Records of all arms and seeds in a folder."""

    def __init__(self, folder: Path):
        self.by_arm: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in records(folder):
            self.by_arm[record["arm"]][record["seed"]] = record
        self.texts: dict[str, Any] = json.loads((folder / TEXTS).read_text(encoding="utf-8"))

    def nats(self, arm: str, name: str, seeds: Sequence[int]) -> np.ndarray:
        """(S, D)"""
        return np.array([self.by_arm[arm][seed][name] for seed in seeds])

    def bits_per_byte(self, arm: str, name: str) -> float | None:
        """The mean over the seeds; None where it is not known."""
        seeds = [seed for seed, record in self.by_arm[arm].items() if name in record]
        if not seeds:
            return None
        n_bytes = sum(self.texts["bytes" if name == "nats" else "bytes_of_all"])
        return float(self.nats(arm, name, seeds).sum() / len(seeds) / math.log(2) / n_bytes)

    def change(self, arm: str, base: str) -> Interval:
        """Per cent of bits per byte, over the seeds that both have."""
        seeds = sorted(set(self.by_arm[arm]) & set(self.by_arm[base]))
        name = "nats" if all("nats" in self.by_arm[arm][seed] for seed in seeds) else "nats_of_all"
        return change(self.nats(arm, name, seeds), self.nats(base, name, seeds))

    def mean(self, arm: str, name: str) -> np.ndarray:
        return np.asarray(np.mean([record[name] for record in self.by_arm[arm].values()], axis=0))


def write(folder: Path, rules: plans.Rules, out: Path, *, command: str) -> str:
    """The section of `out`/memory.md, which is also printed; `out`/results has the records."""
    if not (folder / TEXTS).exists():
        return entry.told(folder, rules)
    results = Results(folder)
    parts = [
        SECTION,
        _setting(results, command),
        entry.told(folder, rules),
        _table(results),
        _targets(results),
        plans.told(folder, rules, list(results.by_arm)),
    ]
    page = "\n\n".join(part for part in parts if part) + "\n"
    sections.put(out / "memory.md", SECTION, page, before=report.SECTION)
    plans.publish(folder, rules, out / "results" / RESULTS)
    return page


def _setting(results: Results, command: str) -> str:
    texts = results.texts
    short, long, search = (1000 * seconds for seconds in texts["seconds"])
    return (
        f"Written by `{command}` at commit {plans.commit()}. {texts['model']}, frozen, reads {texts['what']}: "
        f"{texts['documents']} documents, {texts['tokens']:,} tokens, each document by itself, in windows without "
        f"overlap. {texts['how']} {100 * sum(texts['bytes']) / sum(texts['bytes_of_all']):.0f} % of the bytes share "
        f"no run of 8 words with another document. A token takes {short:.1f} ms of one core with 512 tokens of "
        f"context and {long:.1f} with 2,048, and the search for its neighbours {search:.1f}. A stored token is "
        f"{texts['bytes_of_a_token']:,} bytes."
    )


def _table(results: Results) -> str:
    head = [
        "| arm | seeds | bits per byte | change, % [95 %] | tokens helped / hurt, % | of all tokens | weights |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [_row(results, arm) for arm in ORDER if results.by_arm[arm]]
    return "\n".join([*head, *rows, "", NOTE])


def _row(results: Results, arm: str) -> str:
    record = next(iter(results.by_arm[arm].values()))
    measured = "helped" in record and arm != PLAIN
    cells = [
        arm,
        str(len(results.by_arm[arm])),
        _number(results.bits_per_byte(arm, "nats")),
        "" if arm == PLAIN else str(results.change(arm, PLAIN)),
        f"{100 * results.mean(arm, 'helped'):.1f} / {100 * results.mean(arm, 'hurt'):.1f}" if measured else "",
        _number(results.bits_per_byte(arm, "nats_of_all")),
        ", ".join(f"{w:.2f}" for w in results.mean(arm, "weights")) if len(record.get("weights", ())) > 1 else "",
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _targets(results: Results) -> str:
    """Each with what was measured."""
    gated, storing = f"{KNN}, gated", f"{KNN}, storing, gated"
    asked = [
        (f"{KNN} at least 7 % below {PLAIN}", KNN, PLAIN, 7),
        (f"{KNN} below {COUNTED}", KNN, COUNTED, 0),
        (f"{KNN} below {LONG}", KNN, LONG, 0),
        (f"{gated} at least 7 % below {PLAIN}", gated, PLAIN, 7),
        (f"{gated} below {COUNTED}, gated", gated, f"{COUNTED}, gated", 0),
        (f"{gated} below {LONG}", gated, LONG, 0),
        (f"{storing} at least 7 % below {PLAIN}", storing, PLAIN, 7),
        (f"{storing} below {COUNTED}, gated", storing, f"{COUNTED}, gated", 0),
        (f"{storing} below {LONG}", storing, LONG, 0),
        (f"pointer, gated at least 7 % below {PLAIN}", "pointer, gated", PLAIN, 7),
        ("pointer, gated below cache, gated", "pointer, gated", "cache, gated", 0),
        (f"{BEST} at least 10 % below {PLAIN}", BEST, PLAIN, 10),
        (f"{gated} on top of 2,048 tokens at least 5 % below these alone", f"2,048 + {gated}", LONG, 5),
        (f"{THREE} on top of 2,048 tokens at least 5 % below these alone", f"2,048 + {THREE}", LONG, 5),
    ]
    rows = []
    for name, arm, base, least in asked:
        if results.by_arm[arm] and results.by_arm[base]:
            found = results.change(arm, base)
            met = found.mean <= -least and found.high < 0
            rows.append(f"| {name} | {found} | {'met' if met else 'missed'} |")
    return "\n".join(
        ["### Targets", "", "| target, interval clear of 0 | change, % [95 %] | |", "| --- | --- | --- |", *rows]
    )
