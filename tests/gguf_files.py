"""Tiny GGUF files as llama.cpp's own converter writes them, made without this project's export.

Shapes: V vocabulary, E width, H heads, G key-value groups, L layers, F neurons, C positions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lightning_app.data.bpe import byte_symbols

E, H, G, L, F, C = 64, 4, 2, 2, 96, 64
KINDS = {"f32": None, "f16": GGMLQuantizationType.F16, "q8_0": GGMLQuantizationType.Q8_0}
MERGES = [
    *(f"{a} {b}" for a in "0123456789" for b in "0123456789"),
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ t",
    "Ġt he",
    "Ġ Ġ",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *byte_symbols(), *(merge.replace(" ", "") for merge in MERGES)]
V = len(TOKENS)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def llama(*, bias: bool = False, tied: bool = True, size: int = V) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=E,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=G,
        max_position_embeddings=C,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return shaken(LlamaForCausalLM(config))


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=V, n_positions=C, n_embd=E, n_layer=L, n_head=H, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    return shaken(GPT2LMHeadModel(config))


OTHERS: dict[str, dict[str, Any]] = {  # families whose weights have the library's layout: settings unlike its defaults
    "gemma2": {"head_dim": 32, "sliding_window": 8},
    "phi3": {"rms_norm_eps": 1e-3, "pad_token_id": 2, "sliding_window": 8},
    "stablelm": {"use_qkv_bias": True, "layer_norm_eps": 1e-3},
    "starcoder2": {"norm_epsilon": 1e-3},
}
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2}


def other(family: str) -> PreTrainedModel:
    """Of OTHERS; its rotary base is none that the library would guess."""
    sizes = {"hidden_size": E, "intermediate_size": F, "num_hidden_layers": L, "max_position_embeddings": C}
    heads = {"num_attention_heads": H, "num_key_value_heads": G}
    rope = {"rope_type": "default", "rope_theta": 777.0}
    if family in ("phi3", "stablelm"):
        rope["partial_rotary_factor"] = 0.5
    config = AutoConfig.for_model(
        family, vocab_size=V, **sizes, **heads, **SPECIAL_IDS, rope_parameters=rope, **OTHERS[family]
    )
    torch.manual_seed(0)
    made: PreTrainedModel = shaken(AutoModelForCausalLM.from_config(config))
    return made


def shaken(model: Any) -> Any:
    """With biases and norms too."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary halves as llama.cpp has them: pair by pair."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's weights by the format's names, in its layout."""
    by_family = {"llama": _of_llama, "gpt2": _of_gpt2}
    return by_family.get(model.config.model_type, _by_name)(model)


def _by_name(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """By the package's own table; Gemma's norms are stored with the 1 that they add."""
    families = {name: family for family, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(families[model.config.model_type], L)
    found = {}
    for weight, tensor in model.state_dict().items():
        stem, _, kind = weight.rpartition(".")
        plus = 1 if model.config.model_type == "gemma2" and stem.endswith("norm") else 0
        found[f"{names.get_name(stem)}.{kind}"] = tensor + plus
    if model.config.tie_word_embeddings:
        found.pop("output.weight", None)
    return found


def _of_llama(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = model.state_dict()
    found = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        found["output.weight"] = weights["lm_head.weight"]
    for i in range(L):
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                if (weight := weights.get(f"model.layers.{i}.{theirs}.{kind}")) is not None:
                    heads = {"attn_q": H, "attn_k": G}.get(ours)
                    found[f"blk.{i}.{ours}.{kind}"] = interleaved(weight, heads) if heads else weight
    return found


def _of_gpt2(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    names = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    weights = model.transformer.state_dict()
    found = {"token_embd.weight": weights["wte.weight"], "position_embd.weight": weights["wpe.weight"]}
    found |= {f"output_norm.{kind}": weights[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    for i in range(L):
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                weight = weights[f"h.{i}.{theirs}.{kind}"]
                found[f"blk.{i}.{ours}.{kind}"] = weight.t() if weight.dim() == 2 else weight  # Conv1D is (in, out)
    return found


PUT: dict[type, Callable[[GGUFWriter], Callable[[str, Any], None]]] = {
    int: lambda writer: writer.add_uint32,
    float: lambda writer: writer.add_float32,
    str: lambda writer: writer.add_string,
    list: lambda writer: writer.add_array,
}


def write(
    path: Path,
    model: PreTrainedModel,
    *,
    kind: str = "f32",
    pre: str = "smollm",
    settings: dict[str, Any] | None = None,
    more: dict[str, torch.Tensor] | None = None,
    tokens: list[str] = TOKENS,
    merges: list[str] = MERGES,
    scores: list[float] | None = None,
    space_prefix: bool | None = None,
) -> Path:
    """A file with the model's weights and a tokenizer, byte-level unless `scores` are given.

    Args:
        kind: of KINDS; that of matrices.
        pre: `tokenizer.ggml.pre`.
        settings: of the family, over those of the model.
        more: other tensors.
        scores: of SentencePiece's tokens, which begin with <unk>, <s>, </s> and the 256 bytes.
        space_prefix: `tokenizer.ggml.add_space_prefix`.
    """
    family = model.config.model_type
    writer = GGUFWriter(path, family)
    for name, value in (_settings(model) | (settings or {})).items():
        put = PUT[type(value)](writer)
        put(f"{family}.{name}", value)
    if scores is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores)
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)
    writer.add_token_list(tokens)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in (tensors(model) | (more or {})).items():
        _put(writer, name, weight, KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    found = {
        "context_length": C,
        "embedding_length": E,
        "block_count": L,
        "attention.head_count": H,
        "vocab_size": model.config.vocab_size,
    }
    if model.config.model_type == "gpt2":
        return found | {"feed_forward_length": 4 * E, "attention.layer_norm_epsilon": 1e-5}
    if model.config.model_type in OTHERS:
        return found | _settings_of_others(model.config)
    of_llama = {"feed_forward_length": F, "attention.head_count_kv": G, "rope.dimension_count": E // H}
    return found | of_llama | {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}


def _settings_of_others(config: Any) -> dict[str, Any]:
    epsilon = {
        "stablelm": ("layer_norm_epsilon", "layer_norm_eps"),
        "starcoder2": ("layer_norm_epsilon", "norm_epsilon"),
    }
    theirs, ours = epsilon.get(config.model_type, ("layer_norm_rms_epsilon", "rms_norm_eps"))
    size = getattr(config, "head_dim", None) or E // H
    share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    found = {"feed_forward_length": F, "attention.head_count_kv": G, "rope.dimension_count": int(share * size)}
    found |= {"rope.freq_base": config.rope_parameters["rope_theta"], f"attention.{theirs}": getattr(config, ours)}
    if config.model_type == "gemma2":
        found["attention.key_length"] = size
    if (window := getattr(config, "sliding_window", None)) is not None:
        found["attention.sliding_window"] = window
    return found


def _put(writer: GGUFWriter, name: str, weight: torch.Tensor, kind: GGMLQuantizationType | None) -> None:
    data = np.ascontiguousarray(weight.float().numpy())
    if kind is None or data.ndim == 1:
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, quants.quantize(data, kind), raw_dtype=kind)
