"""GatedMixture: how much each reader counts is learned, token by token.

Shapes: B batch, T positions, D width, V vocabulary, F features, K readers that have a distribution of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.knn import interpolated
from lightning_app.memory.persistence import keeping_types
from lightning_app.memory.readers.bank import NoBank
from lightning_app.memory.readers.base import Reader, ReaderOutput, Said, TokenContext
from lightning_app.memory.readers.gate import MOST, Gate, mean_nats, of_targets, sureness
from lightning_app.models.weighing import Over

OF_MODEL, OF_EACH = 2, 4  # features of the model, and of each reader besides its own


class GatedMixture(Reader):
    """Stands last, and mixes what those before it say, with learned shares: p = sum_k w_k p_k over model and readers.

    With the readers in their order, P_0 = p_model and P_k = g_k p_k + (1 - g_k) P_(k - 1), g_k = sigmoid(logit lam_k +
    z_k), where lam_k is what the reader has alone. z is a small network on the state, entropy and largest p of model
    and readers, what they say of each other's likeliest token, and the largest weight of an entry (gated experts:
    Jacobs et al. 1991, doi:10.1162/neco.1991.3.1.79). It starts at 0: the mixture is what the readers give one after
    the other.

    A fit trains it, and the readers that learn, by the term `mixture`; the model gets no gradient from it and is
    trained as without. So the text must be one that neither the model nor counts have seen: see `MemoryLM.freeze`.

    Args:
        hidden: width of the network.

    Raises:
        InputError: it is not the last reader, or none before it has a distribution of its own.
    """

    keeps_types = True  # of its layers, under bf16-true
    means_over: Mapping[str, Over] = {"mixture": "targets"}
    bank: NoBank  # type: ignore[assignment]  # what `Memory` asks of a bank

    def __init__(self, hidden: int = 32):
        super().__init__(writes="never")
        if hidden < 1:
            raise InputError(f"hidden is {hidden}; it must be at least 1")
        self.hidden = hidden

    def config(self) -> dict[str, Any]:
        return {"hidden": self.hidden}

    def _apply(self, fn: Any, recurse: bool = True) -> GatedMixture:
        super()._apply(keeping_types(fn), recurse)
        return self

    def join(self, readers: Sequence[Reader]) -> None:
        """Called before `build` with those that stand before it."""
        mixing = [reader for reader in readers if reader.mixes]
        if not mixing:
            raise InputError(
                "GatedMixture mixes what readers before it say, such as NGramReader, CacheReader: give one"
            )
        self.reads_tokens = any(reader.reads_tokens for reader in mixing)
        self._features = OF_MODEL + sum(OF_EACH + reader.features for reader in mixing)
        self._count = len(mixing)

    def build(self, *, width: int, vocab_size: int) -> None:
        self.memory_dim, self.bank = width, NoBank()
        self.gate = Gate(width, self._features, self.hidden, self._count)

    def read(
        self, readers: Sequence[Reader], logits: Tensor, states: Tensor, context: TokenContext
    ) -> tuple[Tensor, list[ReaderOutput]]:
        """What `at_logits` of the readers before it and its own would give together, with the output of each.

        In training the logits are those of the model, and of readers without a distribution of their own.
        """
        outputs: dict[Reader, ReaderOutput] = {}
        for reader in readers:
            if not reader.mixes:
                logits, outputs[reader] = reader.at_logits(logits, states, context)
        with torch.autocast(states.device.type, enabled=False):
            given = (logits.detach(), states.detach()) if self.training else (logits, states)
            log_p, states = given[0].float().log_softmax(-1), given[1].float()
            said = {reader: reader.says(log_p, states, context) for reader in readers if reader.mixes}
            gates = self._gates(log_p, states, [one for one, _ in said.values()])
            outputs |= _with_reads(said, gates)
            own = ReaderOutput(statistics={f"gate{k}": gate.detach().mean() for k, gate in enumerate(gates)})
            if self.training:
                own = replace(own, terms={"mixture": (1.0, _nats(log_p, said.values(), gates, context))})
            else:
                logits = log_p
                for (one, _), gate in zip(said.values(), gates, strict=True):
                    logits = interpolated(logits, one.p, lam=gate)
        return logits, [*(outputs[reader] for reader in readers), own]

    def _gates(self, log_p: Tensor, states: Tensor, said: Sequence[Said]) -> list[Tensor]:
        """K times (B, T, 1): what each reader has of what it makes with all before it; 0 where it says nothing."""
        features = [sureness(log_p.exp()), *(_features(log_p, one) for one in said)]
        z = self.gate(states, torch.cat(features, dim=-1).detach())
        return [
            (one.lam.clamp_max(MOST).logit() + z[..., k : k + 1])
            .sigmoid()
            .clamp_max(MOST)
            .where(one.p.sum(-1, keepdim=True) > 0, 0.0)
            for k, one in enumerate(said)
        ]


def _features(log_p: Tensor, said: Said) -> Tensor:
    """(B, T, OF_EACH + F) of one reader: how sure it is, and what model and reader say of each other's likeliest."""
    of_best = log_p.gather(-1, said.p.argmax(-1, keepdim=True)).exp()
    of_models = said.p.gather(-1, log_p.argmax(-1, keepdim=True))
    more = [] if said.features is None else [said.features]
    return torch.cat([sureness(said.p), of_best, of_models, *more], dim=-1)


def _nats(
    log_p: Tensor, said: Iterable[tuple[Said, ReaderOutput]], gates: Sequence[Tensor], context: TokenContext
) -> Tensor:
    targets = context.entries.tokens
    p = of_targets(log_p, targets).exp()
    for (one, _), gate in zip(said, gates, strict=True):
        p = gate[..., 0] * of_targets(one.p, targets) + (1 - gate[..., 0]) * p
    return mean_nats(p, context.new & (targets >= 0))


def _with_reads(
    said: Mapping[Reader, tuple[Said, ReaderOutput]], gates: Sequence[Tensor]
) -> dict[Reader, ReaderOutput]:
    """The outputs of the readers, whose reads have the share in all that the gates leave them."""
    outputs, left = {}, torch.ones_like(gates[0])
    for (reader, (one, output)), gate in reversed(list(zip(said.items(), gates, strict=True))):
        outputs[reader] = replace(output, reads=one.reads((gate * left).detach()))
        left = left * (1 - gate)
    return outputs
