"""What validation, test and predict measure of a text beside the loss: bytes, passages, a row for each sequence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.mixture import Mixture
from lightning_app.data.token_array import TokenArray
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.training.by_source import BySource
from lightning_app.training.measures import LanguageMeasures, Passages


class Evaluation:
    """Knows how many bytes each token stands for, and in which passage of the validation text each token stands.

    Attributes:
        token_bytes: (V,) int64; None before there is a tokenizer: then nothing is said of bytes.
        by_passage: (PASSAGES, SUMS), what the last evaluation found of each passage; None without passages.
    """

    def __init__(self) -> None:
        self.token_bytes: Tensor | None = None
        self.by_passage: Tensor | None = None
        self._passages: Passages | None = None
        self._by_source: BySource | None = None
        self._text: TokenArray | None = None

    def use_tokenizer(self, tokenizer: Tokenizer, *, vocab_size: int, device: torch.device) -> None:
        token_bytes = torch.zeros(vocab_size, dtype=torch.int64)
        token_bytes[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.token_bytes()).long()
        self.token_bytes = token_bytes.to(device)

    def use_text(self, tokens: TokenArray | None) -> None:
        """What is evaluated on; None: it is not known, and each token covers what its id says."""
        self._text = tokens

    def use_passages(self, data: TextDataModule | None) -> None:
        """Take the passages of the validation text, where there is one; None: an evaluation alone logs none."""
        self._passages = None
        if data is not None and data.splits.origin("val"):
            assert self.token_bytes is not None
            self._passages = Passages(data.tokens("val"), self.token_bytes)

    def use_sources(self, data: TextDataModule, stage: str) -> None:
        """Measure each of several sources of what a stage of the Trainer evaluates."""
        name = {"fit": "val", "validate": "val"}.get(stage, stage)
        several = data.splits.origin(name) and len(data.splits.parts(name)) > 1
        samples = data.dataset(name) if several else None
        self._by_source = BySource(samples) if isinstance(samples, Mixture) else None

    def to(self, device: torch.device) -> None:
        self._by_source = None if self._by_source is None else self._by_source.to(device)
        self.token_bytes = None if self.token_bytes is None else self.token_bytes.to(device)

    def bytes_of_targets(self, batch: Batch) -> Tensor | None:
        """(B, T) bytes of the text that each target covers, 0 where there is none; None where that is not known."""
        targets = batch.targets
        if self.token_bytes is None:
            return None
        n_bytes = torch.where(targets != IGNORE, self.token_bytes[targets.clamp_min(0)], 0)
        if self._text is not None and self._text.has_other_bytes:
            documents, positions = batch.document_ids.clamp_min(0).cpu().numpy(), batch.positions.cpu().numpy()
            places = self._text.offsets[documents] + positions + 1
            others = torch.from_numpy(self._text.other_bytes(places)).to(targets.device)
            n_bytes += torch.where(targets != IGNORE, others, 0)
        return n_bytes

    def update(self, measures: LanguageMeasures, logits: Tensor, batch: Batch) -> None:
        """Add a batch, with its (B, T, V) logits."""
        passages = None
        if self._passages is not None:
            passages = self._passages.of_targets(batch.document_ids, batch.positions)
        n_bytes = self.bytes_of_targets(batch)
        measures.update(logits, batch.targets, n_bytes, passages)
        if self._by_source is not None:
            self._by_source.update(logits, batch.targets, batch.document_ids, n_bytes)

    def end(self, measures: LanguageMeasures) -> dict[str, Tensor]:
        """What was measured, by name; the sums of passages are kept apart."""
        found = measures.compute()
        self.by_passage = found.pop("passages", None)
        measures.reset()
        if self._by_source is not None:
            found |= self._by_source.compute()
            self._by_source.reset()
        return found

    def rows(self, logits: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """One of each sequence: document, tokens, ce (nats per token); bytes and bpb (bits per byte) if known."""
        real = batch.targets != IGNORE
        nll, tokens = token_nll(logits, batch.targets).cpu().double().sum(-1), real.sum(-1)
        rows: list[dict[str, Any]] = [
            {"document": int(d), "tokens": int(n), "ce": float(x / max(1, n))}
            for d, n, x in zip(batch.document_ids[:, 0].tolist(), tokens.tolist(), nll.tolist(), strict=True)
        ]
        n_bytes = self.bytes_of_targets(batch)
        if n_bytes is not None:
            for row, x, b in zip(rows, nll.tolist(), n_bytes.sum(-1).tolist(), strict=True):
                row |= {"bytes": b, "bpb": x / math.log(2) / max(1, b)}
        return rows


def mean_of_each(said: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means of what regularisers say of sequences, of floats and bools: whole numbers are names, not amounts."""
    return {name: x.float().mean() for name, x in said.items() if x.dtype != torch.int64}
