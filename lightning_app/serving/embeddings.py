"""One vector for a text: its pooled states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.training.module import LanguageModule


@torch.inference_mode()
def embed(module: LanguageModule, ids: Sequence[int]) -> Tensor:
    """(D,) mean of the model's own last states over all tokens, of unit length.

    A text beyond the model's context is seen in parts of that length.

    Args:
        ids: at least one token.
    """
    model = module.backbone.without_memory
    length = model.max_length or len(ids)
    total = torch.zeros(model.width, device=module.device)
    for start in range(0, len(ids), length):
        part = torch.tensor([ids[start : start + length]], device=module.device)
        total += model.states(part).last[0].float().sum(0)
    return F.normalize(total, dim=0).cpu()
