"""From the results of experiments.novelty to its part of docs/art.md.

Shapes: S seeds, K documents of known texts, N of new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from experiments import store
from experiments.auroc import interval
from experiments.near import HALF, NEAR
from experiments.statistics import Interval
from experiments.tables import table

FOLDER = "novelty"  # of the results
Records = list[store.Record]


@dataclass(frozen=True)
class Novelty:
    """Results of all seeds."""

    folder: Path

    @cached_property
    def records(self) -> Records:
        return [record for record in store.records(self.folder) if record["part"] == "novelty"]

    @cached_property
    def _won(self) -> list[dict[str, np.ndarray]]:
        seeds = sorted({record["seed"] for record in self.records})
        return [dict(np.load(self.folder / f"wins-{seed}.npz")) for seed in seeds]

    def all(self, name: str) -> list[str | int]:
        return list(dict.fromkeys(record[name] for record in self.records))

    def auroc(self, length: int, new: str, detector: str, less: str | None = None) -> Interval:
        """With its interval; less that of another detector."""
        won, base = (
            None if one is None else np.stack([of[f"{length}, {new}, {one}"] for of in self._won])
            for one in (detector, less)
        )
        assert won is not None
        return interval(won, self._won[0][f"{length}, {new}"], base, same=new == HALF)


def parts(folder: Path) -> list[str]:
    """Sections of the page; none without results."""
    found = Novelty(folder / FOLDER)
    if not found.records:
        return []
    return ["### Novelty", _said(found), *_tables(found), _note(found), _clusters(store.records(found.folder))]


def _said(found: Novelty) -> str:
    """Whether ART knows better than the loss on a near pair."""
    rows, above = [], []
    for new in (name for name in NEAR if name in found.all("new")):
        for length in found.all("length"):
            more = found.auroc(int(length), new, "ART", less="loss")
            verdict = "above" if more.low > 0 else "below" if more.high < 0 else "undecided"
            above += [f"{new}, {length} tokens"] if more.low > 0 else []
            rows.append([f"{new}, {length} tokens", f"{_number(more, sign='+')}", verdict])
    met = f"met: {'; '.join(above)}" if above else "**missed: on no near pair does ART know better than the loss**"
    head = ["known against", "AUROC of ART less that of the loss [95 %]", ""]
    return f"Target, AUROC above the loss on a near pair, interval clear of 0: {met}.\n\n{table(head, rows)}"


def _number(one: Interval, sign: str = "") -> str:
    """An AUROC lies in [0, 1], which seeds that differ do not know."""
    low, high = (one.low, one.high) if sign else (max(0.0, one.low), min(1.0, one.high))
    return f"{one.mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _tables(found: Novelty) -> list[str]:
    news = [str(name) for name in found.all("new")]
    tables = []
    for length in found.all("length"):
        rows = []
        for detector in found.all("detector"):
            cells = [_number(found.auroc(int(length), new, str(detector))) for new in news]
            holds = next(r for r in found.records if r["detector"] == detector and r["length"] == length)["holds"]
            rows.append([str(detector), *cells, holds])
        tables.append(f"AUROC, sequences of {length} tokens:\n\n{table(['detector', *news, 'holds'], rows)}")
    return tables


def _note(found: Novelty) -> str:
    sizes = {r["new"]: r["of_new"] for r in found.records if r["length"] == max(found.all("length"))}
    known = max(r["known"] for r in found.records if r["length"] == max(found.all("length")))
    of_new = ", ".join(f"{n} of {name}" for name, n in sizes.items())
    alone = " Of one seed the noise of seeds is not in the intervals." if len(found.all("seed")) == 1 else ""
    return (
        f"The models have learned three quarters of the first halves of the articles. Known: the rest of these halves "
        f"({known} of the longest sequences); new: {of_new}. Detectors are fitted to what was learned, on mean last "
        "states; k-means has as many centres as ART has categories. Intervals: 95 %, over seeds and then documents."
        f"{alone}"
    )


def _clusters(records: Records) -> str:
    found = [record for record in records if record["part"] == "clusters"]
    if not found:
        return ""
    rows = []
    for who, name in (("art", "ART"), ("kmeans", "k-means")):
        values = [
            f"{np.mean([r[f'{who}_{measure}_{of}'] for r in found]):.3f}"
            for of in ("domain", "document")
            for measure in ("purity", "nmi")
        ]
        rows.append([name, f"{np.mean([r['clusters'] for r in found]):.0f}", *values])
    note = (
        f"{found[0]['texts']} sequences of the first domain, the second one and source code; mean last states, which "
        "ART saw once and k-means until it converged, with as many clusters. Means over the seeds."
    )
    head = ["", "clusters", "purity: domain", "NMI: domain", "purity: document", "NMI: document"]
    return "\n\n".join(["### Clusters", table(head, rows), note])
