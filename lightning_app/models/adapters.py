"""Adapters of peft from a folder, merged into their model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_app.data.adapter_folder import WEIGHTS
from lightning_app.errors import InputError
from lightning_app.models.weight_files import check_length

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel


def check_adapters(folder: Path) -> None:
    """Whether a folder's adapters can be merged into a model, before any weight is read.

    Raises:
        InputError: the weights are not there or truncated; adapters of another kind; peft is not installed.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise InputError(f"{folder} has adapters, which need the package peft: pip install peft") from error
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} lacks its adapters: there is no {WEIGHTS}; save them as safetensors")
    check_length(folder / WEIGHTS)
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise InputError(f"{folder} holds a {kind}, which cannot be merged into a model: give adapters such as LoRA")


def with_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with a folder's adapters merged: W + (alpha / r) B A in the place of W, where they are LoRA."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged
