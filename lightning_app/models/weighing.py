"""How much each batch of an optimizer step counts in it, when several are accumulated.

Shapes: B rows, T positions, K batches of the step, C things that are counted.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_app.models.losses import IGNORE

# What a loss term is a mean over: tokens that are to be predicted, tokens, rows with any token, or none of them.
Over = Literal["targets", "tokens", "texts", "batches"]
COUNTED: tuple[Over, ...] = get_args(Over)
Terms = dict[str, tuple[float, Tensor]]  # weight and value of loss terms, by name


def counts_of(targets_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(C,) int64: how many of each of `COUNTED` a batch has."""
    counts = (targets_BT != IGNORE).sum(), mask_BT.sum(), mask_BT.any(-1).sum()
    return torch.stack([*counts, torch.ones_like(counts[0])])


class Window:
    """The batches of one optimizer step, whose counts are known before the first of them is computed.

    A term that is a mean over things has, of the step, the mean over the things of all batches: each batch's mean is
    weighed by its share of them. A term of "batches" has the mean of the batches.

    Args:
        counts_KC: of each batch, on all ranks together.
        accumulate: what the Trainer divides each batch's loss by, also in a step of fewer batches.
    """

    def __init__(self, counts_KC: Tensor, *, accumulate: int):
        self.batches = len(counts_KC)
        self._shares_KC = counts_KC / counts_KC.sum(0).clamp_min(1)
        self._accumulate, self._done = accumulate, 0
        self._sums: dict[str, Tensor] = {}

    def weigh(
        self, terms: Mapping[str, tuple[float, Tensor]], over: Mapping[str, Over]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The next batch's part of the loss, as the Trainer wants it, and each term's mean over the batches so far.

        Args:
            terms: weight and value by name.
            over: what each is a mean over; "batches" where nothing is said.
        """
        self._done += 1
        columns = {name: self._shares_KC[: self._done, COUNTED.index(over.get(name, "batches"))] for name in terms}
        loss = torch.zeros((), device=self._shares_KC.device)
        for name, (weight, term) in terms.items():
            share = columns[name][-1]
            loss = loss + weight * (self._accumulate * share) * term
            self._sums[name] = self._sums.get(name, 0) + share * term.detach()
        tiny = torch.finfo(torch.float32).tiny  # none of the things so far
        return loss, {name: self._sums[name] / columns[name].sum().clamp_min(tiny) for name in terms}
