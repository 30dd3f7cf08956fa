"""GGUF files (llama.cpp's format) as models of the Hugging Face library, their weights dequantised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_app.data.gguf_file import GGUFFile, is_named_gguf, package, read_gguf
from lightning_app.errors import InputError
from lightning_app.models.gguf_rope import FACTORS, scaled_rope
from lightning_app.models.hugging_face import gguf_within, is_model, without_bars

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PretrainedConfig, PreTrainedModel

PER_LAYER = (
    "attention.head_count",
    "attention.head_count_kv",
    "feed_forward_length",
)  # a number, or one for each layer
LOST = {  # by family: settings of a config, what the file calls them, and the name that the library gives them
    "gpt2": {"n_positions": ("context_length", "n_ctx"), "n_inner": ("feed_forward_length", "feed_forward_length")},
    "phi3": {"sliding_window": ("attention.sliding_window", "")},
    "qwen3": {"head_dim": ("attention.key_length", "")},
}
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}


def gguf_of(name: str, gguf_file: str | None) -> GGUFFile | None:
    """The file that `pretrained` and `gguf_file` name; None where they name none.

    Raises:
        InputError: see `read_gguf`; a directory with a GGUF file alone, which is not named.
    """
    path = Path(name)
    if gguf_file is not None:
        return read_gguf(path / gguf_file)
    if is_named_gguf(path):
        return read_gguf(path)
    if path.is_dir() and not is_model(path) and (meant := gguf_within(path)) is not None:
        raise InputError(f"{name} is {meant}")
    return None


def vocabulary_of(file: GGUFFile) -> int | None:
    """Rows of its embedding; None where it has none."""
    embedding = file.tensors.get("token_embd.weight")
    return None if embedding is None else int(embedding.shape[-1])  # the format has the last axis first


def gguf_config(file: GGUFFile, **options: Any) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The family's config with the file's settings and `options`, and those options that it does not know."""
    from transformers import AutoConfig

    differing = [name for name in PER_LAYER if isinstance(file.about(name), list) and len(set(file.about(name))) > 1]
    if differing:
        raise InputError(
            f"{file.path}: its layers differ ({differing[0]} is {file.about(differing[0])}), which no family of the "
            "library has; give a file whose layers are alike"
        )
    config, unknown = AutoConfig.from_pretrained(
        str(file.path.parent), gguf_file=file.path.name, return_unused_kwargs=True, **options
    )
    unknown.pop("gguf_file", None)
    _mend(config, file, given=options)
    return config, unknown


def _mend(config: PretrainedConfig, file: GGUFFile, *, given: dict[str, Any]) -> None:
    """Set what the library does not read, or reads into a name that the family does not look at."""
    for name, (theirs, stray) in LOST.get(file.architecture, {}).items():
        if name not in given and file.about(theirs) is not None:
            setattr(config, name, file.about(theirs) or None)  # a window of 0 is none
        config.__dict__.pop(stray, None)
    for name, tensor in BIASES.items():  # in no metadata: llama.cpp sees them by their tensors
        if hasattr(config, name) and tensor in file.tensors:
            setattr(config, name, True)
    config.__dict__.pop("_model_name_or_path", None)
    rope = getattr(config, "rope_parameters", None)
    if not rope or "rope_theta" not in rope or "rope_parameters" in given:  # none, or one for each kind of layer
        return
    rope["rope_theta"] = file.about("rope.freq_base") or rope["rope_theta"]  # not read of StableLM and Starcoder2
    if "partial_rotary_factor" in rope and (size := file.about("rope.dimension_count")) is not None:
        rope["partial_rotary_factor"] = size / head_size(config)
    if (scaled := scaled_rope(file, rope["rope_theta"])) is not None:
        config.rope_parameters = scaled


def head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def load_gguf(file: GGUFFile, config: PretrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, as if it had never been quantised, and the library's report of what was loaded.

    Raises:
        InputError: the file has tensors that the model has no place for.
    """
    from transformers import AutoModelForCausalLM

    with without_bars(), _without_own_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.path.parent), gguf_file=file.path.name, config=config, dtype=dtype, output_loading_info=True
        )
    model, report = loaded
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:  # it would refuse training and saving
        quantizer.remove_quantization_config(model)
    if left := [*unread(file, model), *report["unexpected_keys"]]:
        raise InputError(
            f"{file.path} has {len(left)} tensors that the library does not read, such as {left[0]}: the model would "
            "compute something else; give its Hugging Face directory instead"
        )
    return model, report


@contextmanager
def _without_own_bar() -> Iterator[None]:
    """The library's reader of GGUF files draws one by a tqdm that does not ask whether bars are wanted."""
    from transformers import modeling_gguf_pytorch_utils as reader

    before, reader.tqdm = reader.tqdm, lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = before


def unread(file: GGUFFile, model: PreTrainedModel) -> list[str]:
    """Tensors that no weight of the model stands for: the library drops them without a word. Of a model of
    experts, whose tensors it fuses, theirs are not looked at."""
    gguf = package()
    families = {name: family for family, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(families[file.architecture], model.config.num_hidden_layers)
    read = set()
    for weight in model.state_dict():
        stem, dot, kind = weight.rpartition(".") if weight.endswith((".weight", ".bias")) else (weight, "", "")
        for within in (stem, stem.removeprefix(f"{model.base_model_prefix}.")):
            read.add(f"{names.get_name(within)}{dot}{kind}")
    fused = any("expert" in weight for weight in model.state_dict())
    left = [name for name in file.tensors if name not in read and name != FACTORS]
    return [name for name in left if not (fused and "_exp" in name)]
