"""Which models llama.cpp has a family for, and computes as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_app.errors import InputError

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel

FAMILIES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # llama.cpp's
UNEVEN = "deci"  # llama.cpp's name of a LLaMA whose layers have their own numbers of heads and neurons
ROPES = ("default", "linear", "llama3")


def check_family(model: PreTrainedModel) -> str:
    """llama.cpp's name of the model's family; `UNEVEN` where layers of a LLaMA differ.

    Raises:
        InputError: it has none, or one that computes something else.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{config.model_type!r} cannot be written as GGUF: only GPT-2 and models like LLaMA can "
            f"({', '.join(FAMILIES)}); export without --format gguf"
        )
    for name, usual in _usual(model).items():
        found = getattr(config, name, None)
        if found not in usual:
            raise InputError(
                f"llama.cpp computes {config.model_type!r} with {name} {usual[0]!r}, and this model has {found!r}; "
                "export without --format gguf"
            )
    if (rope := rope_of(model)["rope_type"]) not in ROPES:
        raise InputError(
            f"rotary positions scaled as {rope!r} cannot be written as GGUF, only {', '.join(ROPES)}; export without "
            "--format gguf"
        )
    return UNEVEN if is_uneven(model) else FAMILIES[config.model_type]


def layers_of(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """Heads, key-value groups and neurons of each layer of a model like LLaMA, as its matrices have them."""
    size = head_size(model)
    return [
        (
            layer.self_attn.q_proj.weight.shape[0] // size,
            layer.self_attn.k_proj.weight.shape[0] // size,
            layer.mlp.down_proj.weight.shape[1],
        )
        for layer in model.model.layers
    ]


def is_uneven(model: PreTrainedModel) -> bool:
    """Whether layers have others than the config says: heads or neurons were removed."""
    config = model.config
    if FAMILIES[config.model_type] != "llama":
        return False
    said = (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    return any(layer != said for layer in layers_of(model))


def rope_of(model: PreTrainedModel) -> dict[str, Any]:
    return getattr(model.config, "rope_parameters", None) or {"rope_type": "default"}


def _usual(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """What settings of a config must be, where llama.cpp knows but one value."""
    if model.config.model_type == "gpt2":
        return {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        }
    return {"hidden_act": ("silu",), "sliding_window": (None,)}


def head_size(model: PreTrainedModel) -> int:
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
