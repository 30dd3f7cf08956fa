"""loss.png: training and validation curves of a run, from its log alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_app.io import replacing
from lightning_app.reports.beside import MODEL, of_validation
from lightning_app.reports.record import Record
from lightning_app.reports.series import best_validation, series


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
    if best is not None and (ce := best.values["val/ce"]) is not None:
        label = f"best: {ce:.3f} at step {best.step}"
        axes.plot([best.step], [ce], "*", color="#c1440e", markersize=14, label=label)
    for number, (who, level) in enumerate(levels(records)):
        style = ("--", ":", "-.")[number % 3]
        axes.axhline(level, color="#6f7a85", linestyle=style, linewidth=1, label=f"{who}: {level:.3f}")
    axes.set(title=title, xlabel="optimizer step", ylabel="nats per token")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right")  # "best" looks at every point, and warns where that takes long
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def levels(records: Sequence[Record]) -> list[tuple[str, float]]:
    """What counts and compressors need of the validation text, in nats per token of the model; see `beside`."""
    best = best_validation(records)
    ce, bits = (best.values.get(name) if best else None for name in ("val/ce", "val/bpb"))
    if not ce or not bits:
        return []
    return [(one.who, one.bits * ce / bits) for one in of_validation(records) if one.who != MODEL]
