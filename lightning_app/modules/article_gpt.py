"""Article GPT: the scratch Transformer, trained on a handful of articles."""

from __future__ import annotations

from typing import Any

from lightning_app.models.decoder import Decoder
from lightning_app.modules.base import LanguageModule


class ArticleGPT(LanguageModule):
    """A `Decoder` trained from scratch by next-token prediction.

    Args:
        backbone: its options stand directly under `model.init_args.backbone` in YAML.
        kwargs: see `LanguageModule`.
    """

    def __init__(self, backbone: Decoder, **kwargs: Any):
        super().__init__(backbone, **kwargs)
