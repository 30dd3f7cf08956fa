"""Cross-entropy and bits per byte of each of several sources of a validation text."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_app.data.mixture import Mixture
from lightning_app.models.losses import IGNORE, token_nll

_DOUBLE = torch.float32 if torch.backends.mps.is_available() else torch.float64  # MPS has no float64


class BySource(Metric):
    """Sums over the targets of each source, over all ranks.

    Args:
        samples: what is evaluated.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, samples: Mixture):
        super().__init__()
        self.samples = samples
        sources = len(samples.parts)
        self.add_state("sums", torch.zeros(sources, 3, dtype=_DOUBLE), dist_reduce_fx="sum")  # nats, targets, bytes

    def update(self, logits: Tensor, targets: Tensor, document_ids: Tensor, n_bytes: Tensor | None) -> None:
        """Add a batch: (B, T, V) logits, (B, T) targets, documents, and bytes of each target where they are known."""
        real = targets != IGNORE
        known = torch.zeros_like(targets) if n_bytes is None else n_bytes
        each = torch.stack([x.to(_DOUBLE) for x in (token_nll(logits, targets), real, known)], dim=-1)
        self.sums.index_add_(0, self.samples.part_of(document_ids[real]), each[real])

    def compute(self) -> dict[str, Tensor]:
        """`ce_NAME` (nats per token), and `bpb_NAME` where the bytes are known."""
        found: dict[str, Tensor] = {}
        for label, (nats, targets, n_bytes) in zip(self.samples.labels, self.sums.cpu(), strict=True):
            if targets > 0:
                found[f"ce_{label}"] = nats / targets
            if n_bytes > 0:
                found[f"bpb_{label}"] = nats / math.log(2) / n_bytes
        return found
