"""Evaluation measures, summed over all real targets of a run: neither batch size nor number of ranks matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lightning_app.data.token_array import TokenArray
from lightning_app.models.losses import IGNORE, bits_per_byte, macro_f1, token_nll
from lightning_app.reports.intervals import SUMS

_DOUBLE = torch.float32 if torch.backends.mps.is_available() else torch.float64  # MPS has no float64
PASSAGES = 32


class Passages:
    """A text cut into `PASSAGES` consecutive parts of equally many bytes, whatever the tokenizer.

    Their sums say how much of a measure is chance of the text, and runs on one text compare passage by passage.

    Args:
        tokens: the text.
        token_bytes: (V,) bytes of text that each id stands for.
    """

    def __init__(self, tokens: TokenArray, token_bytes: Tensor):
        n_bytes = token_bytes.cpu().numpy()[tokens.ids[: tokens.n_tokens]]
        reached = (n_bytes + tokens.other_bytes(np.arange(tokens.n_tokens))).cumsum()
        limits = reached[-1] * np.arange(1, PASSAGES) / PASSAGES
        self.ends = torch.from_numpy(np.searchsorted(reached, limits, side="right"))
        self.offsets = torch.from_numpy(tokens.offsets[:-1])

    def of_targets(self, document_ids: Tensor, positions: Tensor) -> Tensor:
        """(B, T) documents and positions of input ids, -1 on padding -> (B, T) number of each target's passage."""
        ends, offsets = self.ends.to(positions.device), self.offsets.to(positions.device)
        return torch.bucketize(offsets[document_ids.clamp_min(0)] + positions + 1, ends, right=True)


class LanguageMeasures(Metric):
    """Cross-entropy (nats per token), perplexity, bits per byte, accuracy and macro F1 over tokens.

    Args:
        vocab_size: V.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    n_bytes: Tensor
    by_passage: Tensor
    true_positives: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.add_state("nll", torch.zeros((), dtype=_DOUBLE), dist_reduce_fx="sum")
        for name in ("tokens", "n_bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("true_positives", "predicted", "actual"):
            self.add_state(name, torch.zeros(vocab_size, dtype=torch.int64), dist_reduce_fx="sum")

        self.add_state("by_passage", torch.zeros(PASSAGES, len(SUMS), dtype=_DOUBLE), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Moves to a device and never takes another type: sums in half precision would count to 256, and no further."""

        def moved(x: Tensor) -> Tensor:
            there = fn(x)
            return there if there.dtype == x.dtype else x.to(there.device)

        return super()._apply(moved, exclude_state)

    def update(
        self,
        logits: Tensor,
        targets: Tensor,
        n_bytes: Tensor | None = None,
        passages: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Args:
            logits: (B, T, V).
            targets: (B, T), IGNORE where nothing is to be predicted.
            n_bytes: (B, T) bytes of text that each target stands for; None: bits per byte stay unknown.
            passages: (B, T) number of the passage that each target stands in.
        """
        real = targets != IGNORE
        wanted, guessed = targets[real], logits.argmax(-1)[real]
        nll = token_nll(logits, targets)
        self.nll += nll.sum(dtype=_DOUBLE)
        self.tokens += real.sum()
        if n_bytes is not None:
            self.n_bytes += n_bytes[real].sum()
        if n_bytes is not None and passages is not None:
            sums = (nll[real], torch.ones_like(wanted), n_bytes[real], wanted == guessed)
            self.by_passage.index_add_(0, passages[real], torch.stack([x.to(_DOUBLE) for x in sums], dim=-1))
        self.true_positives += torch.bincount(wanted[wanted == guessed], minlength=self.vocab_size)
        self.predicted += torch.bincount(guessed, minlength=self.vocab_size)
        self.actual += torch.bincount(wanted, minlength=self.vocab_size)

    def compute(self) -> dict[str, Tensor]:
        """`ce`, `ppl`, `acc`, `f1`; `bpb` where the bytes are known; `passages` (PASSAGES, SUMS) where those are."""
        nll, n, n_bytes = self.nll.cpu().double(), self.tokens.clamp_min(1).cpu(), self.n_bytes.cpu()
        ce = nll / n
        measures = {
            "ce": ce,
            "ppl": ce.exp(),
            "acc": self.true_positives.sum().cpu() / n,
            "f1": macro_f1(self.true_positives.cpu(), self.predicted.cpu(), self.actual.cpu()),
        }
        if n_bytes > 0:
            measures["bpb"] = bits_per_byte(nll, n_bytes)
        if self.by_passage.any():
            measures["passages"] = self.by_passage.cpu()
        return measures
