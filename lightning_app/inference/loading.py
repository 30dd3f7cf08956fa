"""From a checkpoint file alone to a module and its tokenizer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import instantiate_module

from lightning_app.errors import InputError
from lightning_app.modules.base import LanguageModule
from lightning_app.text.datamodule import TextDataModule
from lightning_app.text.tokenizer import Tokenizer
from lightning_app.training.checkpoint_io import read_checkpoint


def load_module(path: str | Path) -> tuple[LanguageModule, Tokenizer]:
    """The trained module, in eval mode on the CPU, and the tokenizer that travelled with it.

    Raises:
        InputError: no such file, damaged, or not a checkpoint of this project's modules and data.
    """
    return module_of(read_checkpoint(path), path)


def module_of(checkpoint: dict[str, Any], path: str | Path) -> tuple[LanguageModule, Tokenizer]:
    """`load_module` of a checkpoint that was read from `path`."""
    module = _build(checkpoint, path)
    module.on_load_checkpoint(checkpoint)  # says in plain words what does not fit
    module.load_state_dict(checkpoint["state_dict"])
    state = checkpoint.get(TextDataModule.__qualname__)
    if state is None:
        raise InputError(f"{path} holds no tokenizer: it was not trained on a TextDataModule")
    tokenizer = Tokenizer.from_state(state["tokenizer"])
    module.use_tokenizer(tokenizer)
    return module.eval(), tokenizer


def _build(checkpoint: dict[str, Any], path: str | Path) -> LanguageModule:
    hyper_parameters = dict(checkpoint.get("hyper_parameters", {}))
    hyper_parameters.pop("_instantiator", None)
    class_path = hyper_parameters.pop("_class_path", None)
    if class_path is None:
        raise InputError(f"{path} does not say which module it holds: it is no checkpoint of this project")
    package, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{path} holds a {class_path}, which cannot be imported here: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, LanguageModule)):
        raise InputError(f"{path} holds a {class_path}, which is no LanguageModule")
    return instantiate_module(cls, hyper_parameters)
