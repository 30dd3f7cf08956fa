"""Models without any idea: the scratch Transformer, and any pretrained one."""

from __future__ import annotations

from typing import Any

from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.training.module import LanguageModule


class ArticleGPT(LanguageModule):
    """A `Decoder` trained from scratch by next-token prediction.

    Args:
        backbone: its options stand directly under `model.init_args.backbone` in YAML.
        kwargs: see `LanguageModule`.
    """

    def __init__(self, backbone: Decoder, **kwargs: Any):
        super().__init__(backbone, **kwargs)


class CausalLM(LanguageModule):
    """Next-token prediction, from scratch or fine-tuning: what a `PretrainedLM` has learned is where it starts.

    Args:
        backbone: by `class_path` in YAML, such as `lightning_app.models.pretrained.PretrainedLM`.
        kwargs: see `LanguageModule`.
    """

    def __init__(self, backbone: Backbone, **kwargs: Any):
        super().__init__(backbone, **kwargs)
