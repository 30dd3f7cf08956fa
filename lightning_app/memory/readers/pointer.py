"""PointerReader: a cache that has learned which states are alike, how much their age counts, and when to look.

Shapes: B batch, T positions, D width, C entries that a position may read, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.persistence import keeping_types
from lightning_app.memory.readers.bank import OWN, Candidates, Scope
from lightning_app.memory.readers.base import ReaderOutput, Said, TokenContext, Writes
from lightning_app.memory.readers.distribution import InterpolatedReader, all_stored, earlier_in_block
from lightning_app.memory.readers.gate import LEAST, MOST, Gate, mean_nats, of_targets, sureness
from lightning_app.memory.slots import joined
from lightning_app.models.weighing import Over

AGES = 32  # powers of two that an age is told apart by


class PointerReader(InterpolatedReader):
    """p = (1 - g) p_model + g sum_j a_j [next token of j], over the entries j of the row's memory and its own block.

    a = softmax_j(s (W h).(K h_j) + b[floor(log2 age)]), where only W^T K counts: I + A; g is the sigmoid of a small
    network on the state, the entropy and the largest p of the model, and the largest a (pointer networks with a gate:
    Merity et al. 2016, arXiv:1609.07843). It starts as `CacheReader` with the same `lam` and `theta`: A, b and the
    network's output are 0.

    A fit trains it by the term `pointer`, the nats of the mixture; the model gets no gradient from it and is trained as
    without it. So the text must be one that the model has not learned: `freeze` the model, and give another text.

    Args:
        lam: g at first, between 0 and 1.
        theta: s at first, see `CacheReader`.
        hidden: width of the network.
        memory_size: states that are kept.
        writes: with `always`, and `data.order: streams`, a fit has the memory that an evaluation will have; else it
            reads within the block alone.
        kwargs: see `Reader` and `AssociativeMemory`.

    Raises:
        InputError: an option out of range.
    """

    reads_all = True
    keeps_types = True  # of its layers, under bf16-true
    means_over: Mapping[str, Over] = {"pointer": "targets"}

    def __init__(
        self,
        lam: float = 0.1,
        theta: float = 0.1,
        hidden: int = 32,
        memory_size: int = 2000,
        scope: Scope = "stream",
        writes: Writes = "evaluation",
        **kwargs: Any,
    ):
        super().__init__(scope=scope, writes=writes, memory_size=memory_size, **kwargs)
        if not 0 < lam < 1:
            raise InputError(f"lam is {lam}; a gate that learns must begin between 0 and 1")
        if not 0 < theta < math.inf:
            raise InputError(f"theta is {theta}; it must be above 0")
        if hidden < 1:
            raise InputError(f"hidden is {hidden}; it must be at least 1")
        self.lam, self.theta, self.hidden = lam, theta, hidden

    def config(self) -> dict[str, Any]:
        return {**super().config(), "lam": self.lam, "theta": self.theta, "hidden": self.hidden}

    def _apply(self, fn: Any, recurse: bool = True) -> PointerReader:
        super()._apply(keeping_types(fn), recurse)
        return self

    def build_layers(self, width: int, vocab_size: int) -> None:
        super().build_layers(width, vocab_size)
        self.metric_change = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.metric_change.weight)
        self.log_scale = nn.Parameter(torch.tensor([math.log(self.theta)]))
        self.age_bias = nn.Parameter(torch.zeros(AGES))
        self.gate = Gate(width, 8, self.hidden)
        nn.init.constant_(self.gate.outer.bias, math.log(self.lam / (1 - self.lam)))

    def neighbours(self, states: Tensor, context: TokenContext) -> Candidates:
        queries, own = states + self.metric_change(states), self.scope == "document"
        block = earlier_in_block(states, context, queries=queries, own_document_only=own)
        return joined([all_stored(self.bank, queries, context), block], dim=-1) if self.bank.size() else block

    def scores(self, found: Candidates, context: TokenContext) -> Tensor:
        near = self.log_scale.exp() * -found.distances.where(found.found, 0.0)  # scale x inf has no gradient
        ages = log2_of(self._ages(found.ids[:, :1], context))
        return near + self.age_bias.expand(*ages.shape[:2], AGES).gather(-1, ages)

    def _ages(self, ids: Tensor, context: TokenContext) -> Tensor:
        """(B, 1, C) candidates, the same at all positions -> (B, T, C) float32, how many tokens ago each was seen: 1 is
        the one before. Of the memory's it is how many were written since."""
        own, T = ids <= OWN, context.ids.shape[1]
        written = (context.new & (context.entries.tokens >= 0)).float()
        before = (written.cumsum(1) - written)[..., None]
        first = torch.where(own, ids - OWN, self.bank.next_ids(context.rows)[:, None, None] - ids).float()
        return first + torch.where(own, torch.arange(float(T), device=ids.device)[:, None], before)

    def share_of_all(self, log_p: Tensor, states: Tensor, found: Candidates, match: Tensor) -> Tensor:
        features = torch.cat([sureness(log_p.exp()), match, _agreement(log_p, found)], dim=-1)
        return self.gate(states, features.detach()).sigmoid().clamp(LEAST, MOST)

    def says(self, log_p: Tensor, states: Tensor, context: TokenContext) -> tuple[Said, ReaderOutput]:
        said, output = super().says(log_p, states, context)
        return said, replace(output, statistics={**output.statistics, "gate": said.lam.detach().mean()})

    def at_logits(self, logits: Tensor, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """With log-probabilities in float32, in evaluation; in training as they are, and with the term."""
        if not self.training:
            return super().at_logits(logits, states, context)
        with torch.autocast(states.device.type, enabled=False):
            return logits, self._taught(logits.detach().float().log_softmax(-1), states.detach().float(), context)

    def _taught(self, log_p: Tensor, states: Tensor, context: TokenContext) -> ReaderOutput:
        """What the entries say of the targets alone, which is all that the loss needs."""
        targets, (found, match) = context.entries.tokens, self.weighed(states, context)
        own = _weight_of(targets[..., None], found)[..., 0]
        gate = self.share_of_all(log_p, states, found, match)[..., 0]
        lam = gate.where(found.found.any(-1), 0.0)
        term = mean_nats(lam * own + (1 - lam) * of_targets(log_p, targets).exp(), context.new & (targets >= 0))
        statistics = {**self.statistics(found, context), "gate": gate.detach().mean()}
        return ReaderOutput({"pointer": (1.0, term)}, statistics, self.update(states, context))


def _agreement(log_p: Tensor, found: Candidates) -> Tensor:
    """(B, T, 3) what entries and model give to the heaviest entry's token, and entries to the model's likeliest one."""
    token = found.entries.tokens.gather(-1, found.weights.argmax(-1, keepdim=True)).clamp_min(0)
    theirs, of_models = (_weight_of(one, found) for one in (token, log_p.argmax(-1, keepdim=True)))
    return torch.cat([theirs, log_p.gather(-1, token).exp(), of_models], dim=-1)


def _weight_of(tokens: Tensor, found: Candidates) -> Tensor:
    """(B, T, 1) tokens -> (B, T, 1) weight of all entries that they follow."""
    return (found.weights * (found.entries.tokens == tokens)).sum(-1, keepdim=True)


def log2_of(ages: Tensor) -> Tensor:
    """floor(log2 age) of ages in float32, from 0 to AGES - 1; int64. It is the exponent of such a number."""
    return ((ages.clamp(1.0, 2.0 ** (AGES - 1)).view(torch.int32) >> 23) - 127).long()
