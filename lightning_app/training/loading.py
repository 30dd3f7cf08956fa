"""The model that a command's options mean."""

from __future__ import annotations

from pathlib import Path

from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.generation import use_column_major_weights
from lightning_app.training.checkpoint import load_module
from lightning_app.training.checks import say_what_draws_otherwise
from lightning_app.training.command_options import ModelOptions
from lightning_app.training.find_checkpoint import find_checkpoint
from lightning_app.training.module import LanguageModule


def read_template(path: Path | None) -> ChatTemplate | None:
    """That which is given. Raises InputError where it cannot be read: before a model is."""
    return None if path is None else ChatTemplate.read(path)


def load(model: ModelOptions) -> tuple[Path, LanguageModule, Tokenizer]:
    """The checkpoint that is meant, its module on the device, ready to generate, and its tokenizer.

    Raises:
        InputError: no such checkpoint or device.
    """
    path = find_checkpoint(model.ckpt_path, model.runs_dir)
    module, tokenizer = load_module(path)
    move(module, model.device)
    use_column_major_weights(module.backbone)
    say_what_draws_otherwise(module.backbone.core, tokenizer)
    return Path(path), module, tokenizer


def move(module: LanguageModule, device: str) -> None:
    """To a device. Raises InputError where it cannot be used."""
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
