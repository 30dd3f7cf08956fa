"""`data.tokenizer: model`: the tokenizer that comes with a pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_app.errors import InputError
from lightning_app.yaml_file import read_yaml

MODEL = "model"
PRETRAINED = "model.init_args.backbone.init_args.pretrained"


def take_model_tokenizer(config: Any) -> None:
    """Say in a parsed config where the model's tokenizer lies, and how many ids its embedding has.

    When the config is read: a link at instantiation would be a circle, as the model is linked to the data's sizes.

    Raises:
        InputError: the model has no `pretrained`.
    """
    if config.data is None or config.data.tokenizer != MODEL:
        return
    pretrained = config.get(PRETRAINED)
    if pretrained is None:
        raise InputError(
            f"data.tokenizer is {MODEL}, but {PRETRAINED} is not given: only a pretrained model brings a tokenizer; "
            "give data.tokenizer another one"
        )
    config.data.tokenizer = pretrained if Path(pretrained).exists() else f"hf:{pretrained}"
    resizes = config.get("model.init_args.backbone.init_args.resize_vocab")
    if config.data.vocab_size is None and not resizes:
        config.data.vocab_size = embedded_ids(pretrained)


def embedded_ids(pretrained: str) -> int | None:
    """The number of ids of a model's embedding, which may have some to spare; None where its directory does not say."""
    file = Path(pretrained) / "config.json"
    if not file.is_file():
        return None
    config = read_yaml(file)  # JSON is YAML
    found = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return None if found is None else int(found)
