"""Losses and measures of next-token prediction; targets are already shifted, IGNORE where nothing is to be predicted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean of -log p(target) over the targets that count, in nats per token; 0 where none counts.

    Args:
        logits_BTV: unnormalised scores, never probabilities.
    """
    nll = F.cross_entropy(logits_BTV.flatten(0, -2), targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")
    return nll / (targets_BT != IGNORE).sum().clamp_min(1)


def token_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-log p(target) of each position in nats, (B, T) in float32; 0 where the target is IGNORE."""
    logits = logits_BTV.float().flatten(0, -2)
    nll = F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORE, reduction="none")
    return nll.view_as(targets_BT)


def macro_f1(true_positives_V: Tensor, predicted_V: Tensor, actual_V: Tensor) -> Tensor:
    """Unweighted mean over the classes of 2 TP / (predicted + actual), over classes that occur in either; 0 without any."""
    total = predicted_V + actual_V
    occurs = total > 0
    f1 = 2 * true_positives_V[occurs].double() / total[occurs].double()
    return f1.mean() if occurs.any() else torch.zeros((), dtype=torch.float64)


def bits_per_byte(nats: Tensor, n_bytes: Tensor) -> Tensor:
    """Total nats over total bytes of the text that was predicted, in bits: a measure in which vocabularies compare."""
    return nats / torch.log(torch.tensor(2.0, dtype=torch.float64, device=nats.device)) / n_bytes.clamp_min(1)
