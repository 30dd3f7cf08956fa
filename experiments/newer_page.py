"""The table of `experiments.newer`. Shapes: N scored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.statistics import HOW, bits_per_byte, by_document, change, helped_and_hurt
from experiments.store import Record, records

HEAD = (
    "| arm | bits per byte | change, % [95 %] | tokens helped / hurt, % | weights | CPU s before | CPU s |",
    "| --- | ------------- | ---------------- | ----------------------- | ------- | ------------ | ----- |",
)


def table(folder: Path, documents: np.ndarray, n_bytes: np.ndarray, new: np.ndarray) -> str:
    """Of all arms, against the first; `documents`, `n_bytes` and `new` (N,) are of the scored text."""
    arms = sorted(records(folder), key=lambda record: record["number"])
    nats = [np.load(folder / f"{arm['number']}.npy")[new] for arm in arms]
    rows = [_row(arm, own, nats[0], documents[new], n_bytes[new]) for arm, own in zip(arms, nats, strict=True)]
    said = f"{new.sum():,} of {len(new):,} tokens of {len(np.unique(documents))} files are scored. {HOW}"
    return "\n".join([*HEAD, *rows, "", said])


def _row(arm: Record, nats: np.ndarray, base: np.ndarray, documents: np.ndarray, n_bytes: np.ndarray) -> str:
    cells = [arm["arm"], f"{bits_per_byte(nats, n_bytes):.4f}"]
    if nats is base:
        cells += ["", ""]
    else:
        found = change(by_document(nats, documents)[None], by_document(base, documents)[None])
        helped, hurt = helped_and_hurt(nats, base)
        cells += [
            str(found),
            f"{100 * helped:.1f} / {100 * hurt:.1f}",
        ]
    cells += [_weights(arm.get("weights", ())), f"{arm.get('seconds_before', 0):.0f}", f"{arm['seconds']:.0f}"]
    return f"| {' | '.join(cells)} |"


def _weights(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:.2f}" for weight in weights)
