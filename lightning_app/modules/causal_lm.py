"""Plain causal language modelling with any backbone: the baseline of everything else."""

from __future__ import annotations

from typing import Any

from lightning_app.models.backbone import Backbone
from lightning_app.modules.base import LanguageModule


class CausalLM(LanguageModule):
    """Next-token prediction, from scratch or fine-tuning: what a `PretrainedLM` has learned is where it starts.

    Args:
        backbone: by `class_path` in YAML, such as `lightning_app.models.pretrained.PretrainedLM`.
        kwargs: see `LanguageModule`.
    """

    def __init__(self, backbone: Backbone, **kwargs: Any):
        super().__init__(backbone, **kwargs)
