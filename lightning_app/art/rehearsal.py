"""Rehearsal: on texts that it has learned before, a model is held to what its average says.

Shapes: N texts, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_app.models.modes import evaluated

Model = TypeVar("Model", bound=nn.Module)


def forgotten(
    live: Model, averaged: Model, texts_NS: Tensor, logits: Callable[[Model, Tensor, Tensor], Tensor]
) -> Tensor:
    """KL(averaged model || live model) of the next tokens of texts, in nats per token; 0 without any.

    Args:
        texts_NS: token ids, -1 behind their ends.
        logits: from a model, ids (N, S) and where they are real (N, S) to (N, S, V).
    """
    if len(texts_NS) == 0:
        return torch.zeros((), device=texts_NS.device)
    texts_NS = texts_NS[:, : int((texts_NS >= 0).sum(-1).amax())]  # a model may take no more than they have
    there, ids = texts_NS >= 0, texts_NS.clamp_min(0)
    real = there[:, 1:]  # the last token of a text predicts one that is not known: it does not count

    def said(model: Model) -> Tensor:
        return logits(model, ids, there)[:, :-1][real].float().log_softmax(-1)

    with torch.no_grad(), evaluated(averaged):
        wanted = said(averaged)
    with nullcontext() if torch.is_grad_enabled() else evaluated(live):  # what is only logged draws no dropout
        found = said(live)
    return F.kl_div(found, wanted, reduction="sum", log_target=True) / real.sum().clamp_min(1)
