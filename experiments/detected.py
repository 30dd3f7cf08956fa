"""Is new text found, and does ART find it better than the loss? `python -m experiments.detected KNOWN NEW ...`

Reads what `predict` has written of a run with ART: of held-out text like that of training, and of each other text. ART
calls novel what its vigilance says; the loss calls novel what is above a limit at which as many known sequences are.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.auroc import auroc
from lightning_app.errors import InputError


@dataclass(frozen=True)
class Predicted:
    """What a model said of N sequences.

    Attributes:
        mismatch: (N,) less the similarity with the nearest category.
        loss: (N,) nats per token.
        novel: (N,) bool, what ART calls so.
    """

    mismatch: Tensor
    loss: Tensor
    novel: Tensor

    @classmethod
    def of(cls, path: Path) -> Predicted:
        """
        Raises:
            InputError: predictions of a model without ART.
        """
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not rows or "art_novel" not in rows[0]:
            raise InputError(f"{path} has no predictions of a model with ART: give what `predict` wrote of one")
        columns = [torch.tensor([row[name] for row in rows]) for name in ("art_similarity", "ce", "art_novel")]
        return cls(-columns[0], columns[1], columns[2])


def limit(known: Tensor, share: float) -> float:
    """What so large a share of the known scores (N,) lies above."""
    above = round(share * len(known))
    return float(known.sort(descending=True).values[above]) if above < len(known) else -math.inf


def table(names: Sequence[str], texts: Sequence[Predicted]) -> Iterator[str]:
    """Rows of Markdown; the first text is the known one."""
    known, *others = texts
    share = float(known.novel.float().mean())
    most = limit(known.loss, share)
    yield "| text | sequences | novel, % by ART | by the loss | AUROC of ART | of the loss |"
    yield "| --- | --- | --- | --- | --- | --- |"
    too_high = float((known.loss > most).float().mean())
    yield f"| {names[0]} (known) | {len(known.loss)} | {share:.0%} | {too_high:.0%} |  |  |"
    for name, text in zip(names[1:], others, strict=True):
        by_art, by_loss = (float(found.float().mean()) for found in (text.novel, text.loss > most))
        areas = auroc(known.mismatch, text.mismatch), auroc(known.loss, text.loss)
        yield f"| {name} | {len(text.loss)} | {by_art:.0%} | {by_loss:.0%} | {areas[0]:.3f} | {areas[1]:.3f} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.detected", description=__doc__)
    parser.add_argument("known", type=Path)
    parser.add_argument("new", type=Path, nargs="+")
    options = parser.parse_args(words)
    paths = [options.known, *options.new]
    print("\n".join(table([path.stem for path in paths], [Predicted.of(path) for path in paths])))


if __name__ == "__main__":
    main()
