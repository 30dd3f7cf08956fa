"""A checkpoint has all that its model needs: the directory of `pretrained` may be gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_app.model_tokenizer import BACKBONE
from lightning_app.models.registry import innermost_backbone
from lightning_app.training.checkpoint import Checkpoint, tokenizer_state


@contextmanager
def without_source(options: Any, checkpoint: Mapping[str, Any] | None) -> Iterator[None]:
    """While a model is built: from the config in the checkpoint, if the path of `pretrained` is not on this disk.

    Behind it the options name the source again, for the run's config.yaml.

    Args:
        options: the parsed config; its tokenizer and number of ids become those of the checkpoint.
        checkpoint: whose weights the model will get.
    """
    spec = options.get(BACKBONE)
    config = None if checkpoint is None or not _is_gone(spec) else _config_in(checkpoint)
    if checkpoint is None or config is None:
        yield
        return
    rank_zero_info(f"{spec.pretrained} is not here: the model is built from its checkpoint alone")
    _take_tokenizer(options.data, spec.pretrained, checkpoint)
    if options.data.vocab_size is None and not spec.resize_vocab:
        options.data.vocab_size = config.get("vocab_size")
    built = {"pretrained": None, "gguf_file": None, "options": None, "config": config | (spec.options or {})}
    before = {name: spec[name] for name in built}
    _set(spec, built)
    try:
        yield
    finally:
        _set(spec, before)


def _set(spec: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        spec[name] = value


def _is_gone(spec: Any) -> bool:
    """A name on the hub counts as well: whoever has the checkpoint need not ask there."""
    pretrained = None if spec is None else spec.get("pretrained")
    return pretrained is not None and not (Path(pretrained) / (spec.get("gguf_file") or "")).exists()


def _config_in(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The family's config; None where the model is another one than `PretrainedLM`."""
    config = innermost_backbone(Checkpoint.of(checkpoint).model).get("options", {}).get("config")
    return dict(config) if config else None


def _take_tokenizer(data: Any, pretrained: str, checkpoint: Mapping[str, Any]) -> None:
    """`data.tokenizer: model` has become a name on the hub, as nothing lies at the path."""
    state = tokenizer_state(checkpoint)
    saved = None if state is None else state["tokenizer"]["name"]
    if data.tokenizer == f"hf:{pretrained}" and saved is not None and Path(saved) == Path(pretrained):
        data.tokenizer = saved
