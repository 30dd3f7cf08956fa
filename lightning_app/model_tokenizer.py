"""`data.tokenizer: model`: the tokenizer that comes with a pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_app.errors import InputError
from lightning_app.models.pretrained import ids_of_directory

MODEL = "model"
BACKBONE = "model.init_args.backbone.init_args"


def take_model_tokenizer(config: Any) -> None:
    """Say in a parsed config where the model's tokenizer lies, and how many ids its embedding has.

    When the config is read: a link at instantiation would be a circle, as the model is linked to the data's sizes.

    Raises:
        InputError: the model has no `pretrained`.
    """
    if getattr(config.data, "tokenizer", None) != MODEL:  # `data` may be anything: it is refused when it is built
        return
    pretrained = config.get(f"{BACKBONE}.pretrained")
    if pretrained is None:
        raise InputError(
            f"data.tokenizer is {MODEL}, but {BACKBONE}.pretrained is not given, and only a pretrained model brings "
            "a tokenizer: give data.tokenizer another one"
        )
    if (file := config.get(f"{BACKBONE}.gguf_file")) is not None:
        pretrained = str(Path(pretrained) / file)
    config.data.tokenizer = pretrained if Path(pretrained).exists() else f"hf:{pretrained}"
    if config.data.vocab_size is None and not config.get(f"{BACKBONE}.resize_vocab"):
        config.data.vocab_size = ids_of_directory(pretrained)  # the embedding may have some to spare
