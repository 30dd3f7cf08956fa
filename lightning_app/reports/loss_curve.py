"""loss.png: training and validation curves of a run, from its log alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_app.io import replacing

Record = dict[str, Any]


def series(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number logged in training, where it is finite."""
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None and "event" not in r]
    return [step for step, _ in found], [value for _, value in found]


SURGERY = ("pruning_event", "regrowth_event", "rollback", "controller_removal")  # events that change the model


def best_validation(records: Sequence[Record]) -> Record | None:
    """The record with the lowest `val/ce` of the model as it is now; None before its first validation.

    What a model reached before heads were removed from it is no measure of what is left.
    """
    changed = max((i for i, r in enumerate(records) if r.get("event") in SURGERY), default=-1)
    validated = [r for r in records[changed + 1 :] if r.get("val/ce") is not None and "event" not in r]
    return min(validated, key=lambda r: r["val/ce"], default=None)


def draw_loss(records: Sequence[Record], path: Path, *, title: str) -> None:
    """Write the picture. A series that was not logged is named as missing in its legend."""
    from matplotlib.figure import Figure  # a second of import, only where a picture is drawn

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, colour, marker in (("train/ce", "#8fb4d9", None), ("val/ce", "#c1440e", "o")):
        steps, values = series(records, name)
        label = f"{name.split('/')[0]} cross-entropy" if steps else f"{name} (not logged)"
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, linewidth=1.6, label=label)
    best = best_validation(records)
    if best is not None:
        label = f"best: {best['val/ce']:.3f} at step {best['step']}"
        axes.plot([best["step"]], [best["val/ce"]], "*", color="#c1440e", markersize=14, label=label)
    axes.set(title=title, xlabel="optimizer step", ylabel="nats per token")
    axes.grid(alpha=0.25)
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
