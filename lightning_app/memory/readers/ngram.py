"""A reader of n-gram counts of the training text: what followed the same last tokens there, mixed in.

Shapes: B batch, T positions, V vocabulary, N tokens, P places, n order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_app.data.batch import GENERATED
from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.memory.knn import interpolated
from lightning_app.memory.persistence import keeping_types
from lightning_app.memory.readers.bank import MemoryUpdate
from lightning_app.memory.readers.base import Reader, ReaderOutput, Said, TokenContext
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.generation import RECENT
from lightning_app.models.ngrams import NGramCounts
from lightning_app.training.distributed import gathered

ENOUGH = 200  # tokens, for a weight to be chosen
ROUNDS = 30  # of expectation and maximisation


class TextBank(nn.Module):
    """A text (N,) and its counts, in the place of a bank of vectors: it has no memories.

    Args:
        order: n.

    Attributes:
        any_length: buffers that take the length that a checkpoint has.
    """

    any_length = ("text",)
    text: Tensor

    def __init__(self, *, order: int, vocab_size: int):
        super().__init__()
        self.order, self.vocab_size = order, vocab_size
        self.memories: list[AssociativeMemory] = []
        self.register_buffer("text", torch.zeros(0, dtype=torch.int32))
        self._counts: NGramCounts | None = None  # of the text
        self._own: NGramCounts | None = None  # of it and of what an evaluation has seen
        self._n_own: int | None = None  # tokens that it has seen; None outside of one

    def hold(self, text: Tensor) -> None:
        """Count this text (N,) from now on, and no other."""
        self.text, self._counts, self._own = text.to(self.text), None, None

    @property
    def counts(self) -> NGramCounts:
        """Counts of the text, and within an evaluation of what was seen in it, too."""
        if self._own is not None:
            return self._own
        if self._counts is None:
            self._counts = NGramCounts.of(self.text, order=self.order, vocab_size=self.vocab_size)
        return self._counts

    def size(self) -> int:
        return len(self.text) + (self._n_own or 0)

    def begin_evaluation(self) -> None:
        """From here on what is written is forgotten at the end."""
        self._own, self._n_own = None, 0

    def end_evaluation(self) -> None:
        """Count the text alone."""
        self._own, self._n_own = None, None

    @property
    def in_evaluation(self) -> bool:
        return self._n_own is not None

    @contextmanager
    def outside_evaluation(self) -> Iterator[None]:
        """Within this context the text alone is counted."""
        before = self._own, self._n_own
        self.end_evaluation()
        try:
            yield
        finally:
            self._own, self._n_own = before

    def write(self, update: MemoryUpdate, *, training: bool) -> dict[str, int]:
        """Count what an evaluation has seen, too; training writes nothing."""
        tokens = update.entries.tokens
        if training or self._n_own is None or not len(tokens):
            return {}
        self._own, self._n_own = self.counts.extended(tokens), self._n_own + len(tokens)
        return {"writes": len(tokens)}

    def _apply(self, fn: Any, recurse: bool = True) -> TextBank:
        """What was counted, and what an evaluation has seen, lies where the text does."""
        super()._apply(fn, recurse)
        device = self.text.device
        self._counts, self._own = (None if c is None else c.to(device) for c in (self._counts, self._own))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}text")
        if found is not None:
            self.hold(found)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NGramReader(Reader):
    """Mixes what the counts of the training text say into the model's distribution: lam p_ngram + (1 - lam) p_model.

    The counts have Kneser-Ney's smoothing (Chen and Goodman 1999). A fit chooses lam anew at the end of each
    validation, as that under which its text is likeliest (Jelinek and Mercer 1980): the text to validate on must be
    kept from training, and the figure to report is that of a third text. Training does not read: the model is trained
    as without it.

    Args:
        order: n, with the token that is predicted.
        memory_size: the most tokens of the training text that are counted, its first ones.
        lam: the weight at first, from 0 to 1.
        writes: `evaluation`: what an evaluation, a session or `compress` has seen is counted, too, until its end.

    Raises:
        InputError: an option out of range.
    """

    reads_tokens = True
    mixes = True
    keeps_types = True  # of `lam`, under bf16-true
    lam: Tensor
    bank: TextBank  # type: ignore[assignment]  # what `Memory` asks of a bank, and no vectors

    def __init__(
        self,
        order: int = 5,
        memory_size: int = 10_000_000,
        lam: float = 0.3,
        writes: Literal["evaluation", "never"] = "never",
    ):
        super().__init__(memory_size=memory_size, writes=writes)
        if not 2 <= order <= RECENT:
            raise InputError(f"order is {order}; it must lie between 2 and {RECENT}")
        if memory_size < 1:
            raise InputError(f"memory_size is {memory_size}; it must be at least 1")
        if not 0 <= lam <= 1:
            raise InputError(f"lam is {lam}; it must lie between 0 and 1")
        if writes not in ("evaluation", "never"):
            raise InputError(f"writes is {writes!r}: NGramReader counts the training text; give evaluation or never")
        self.order, self.memory_size, self.first_lam = order, memory_size, lam
        self.register_buffer("lam", torch.tensor(lam, dtype=torch.float32))
        self._chooses = False
        self._scored: list[Tensor] = []  # (P, 2) each: p of the counts, p of the model

    def build(self, *, width: int, vocab_size: int) -> None:
        self.memory_dim = width
        self.bank = TextBank(order=self.order, vocab_size=vocab_size)

    def config(self) -> dict[str, Any]:
        return {"order": self.order, "memory_size": self.memory_size, "lam": self.first_lam, "writes": self.writes}

    def _apply(self, fn: Any, recurse: bool = True) -> NGramReader:
        super()._apply(keeping_types(fn), recurse)
        return self

    def use_data(self, data: TextDataModule, *, stage: str, rank: int) -> None:
        """Count the training text of a fit."""
        self._chooses = stage == "fit"
        if stage != "fit":
            return
        if data.streamed("train"):
            raise InputError("NGramReader counts the training text, and a stream has no end: leave one of them out")
        text = data.tokens("train")
        ids = np.asarray(text.ids[: self.memory_size])
        if text.n_tokens > self.memory_size:
            rank_zero_warn(f"NGramReader counts {self.memory_size:,} of {text.n_tokens:,} training tokens: memory_size")
        self.bank.hold(torch.from_numpy(ids.astype(np.int32)))

    def says(self, log_p: Tensor, states: Tensor, context: TokenContext) -> tuple[Said, ReaderOutput]:
        contexts = context.last_tokens(self.order - 1).flatten(0, 1)
        counts = self.bank.counts if self.bank.size() else None
        p = torch.zeros_like(log_p) if counts is None else counts.distribution(contexts).view_as(log_p)
        output = ReaderOutput(statistics={"lam": self.lam.clone()}, update=self._update(states, context))
        return Said(p, self.lam), output

    def _update(self, states: Tensor, context: TokenContext) -> MemoryUpdate | None:
        written = context.new & (context.entries.tokens >= 0)
        return context.update_of(states, written) if self.writes_now() else None

    def at_logits(self, logits: Tensor, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """With log-probabilities in float32, in evaluation."""
        if self.training:
            return logits, ReaderOutput()
        if not self.bank.size():
            return logits, ReaderOutput(update=self._update(states, context))
        with torch.autocast(states.device.type, enabled=False):
            log_p = logits.float().log_softmax(-1)
            said, output = self.says(log_p, states, context)
            self._keep(log_p, said.p, context)
        return interpolated(log_p, said.p, lam=said.lam), output

    # The choice of the weight

    @torch.no_grad()
    def _keep(self, log_p: Tensor, p_ngram: Tensor, context: TokenContext) -> None:
        """Keep what a validation of a fit has scored; what is generated was not."""
        targets = context.entries.tokens
        real = context.new & (targets >= 0) & (context.entries.documents != GENERATED)
        if self._chooses and real.any():
            wanted = targets.clamp_min(0)[..., None]
            own, theirs = (p.gather(-1, wanted)[..., 0][real] for p in (p_ngram, log_p))
            self._scored.append(torch.stack([own, theirs.exp()], dim=1))

    def begin_evaluation(self) -> None:
        """What was scored between two validations, as plasticity does it, is not of the next one."""
        self._scored = []

    @torch.no_grad()
    def after_validation(self) -> None:
        """Choose the weight anew; on every rank the same, also where one had no batch."""
        scored, self._scored = torch.cat([self.lam.new_zeros(0, 2), *self._scored]), []
        own, theirs = gathered(scored).double().unbind(1)
        if len(own) >= ENOUGH:
            self.lam.fill_(likeliest_weight(own, theirs))


def likeliest_weight(own: Tensor, theirs: Tensor) -> float:
    """The weight of the first of two, each (P,) what it says of each token of a text, under which that is likeliest.

    Expectation and maximisation (Jelinek and Mercer 1980).
    """
    weight = own.new_tensor(0.5)
    for _ in range(ROUNDS):
        mixed = weight * own
        weight = (mixed / (mixed + (1 - weight) * theirs).clamp_min(1e-300)).mean()
    return float(weight)
