"""A small random model of each kind that keeps the Backbone contract; every weight of it shows in its logits.

Nothing is downloaded.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import AttentionReader, KNNReader, Reader
from lightning_app.memory.slots import Entries
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.lora import LoRA
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.units import Units

V, BLOCK, LAYERS = 31, 16, 2
OF_OURS: dict[str, dict[str, Any]] = {
    "decoder": {"attention_kernel": "sdpa"},
    "decoder without biases": {"bias": False},
    "decoder, rotary": {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False},
    "decoder, swiglu": {"activation": "swiglu", "attention_kernel": "matmul", "head_size": 10, "tie_weights": False},
    "decoder, gates": {"positions": "rotary", "head_gates": True},
}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4}
OPT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 40, "word_embed_proj_dim": 32}
USUAL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
GROUPED = {**USUAL, "num_attention_heads": 8, "num_key_value_heads": 4}
LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 5}
OF_HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {  # model_type, options
    "gpt2": ("gpt2", GPT2),
    "opt": ("opt", OPT),
    "opt_350m": ("opt", {**OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"n_layer": 2, "hidden_size": 32, "n_head": 4}),
    "gpt_neox": ("gpt_neox", USUAL),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}),
    "gpt_neo": ("gpt_neo", {"num_layers": 2, "hidden_size": 32, "num_heads": 4, **LOCAL}),
    "phi": ("phi", USUAL),
    "falcon": ("falcon", {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}),
    "llama": ("llama", {**GROUPED, "head_dim": 10}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("qwen2", GROUPED),
    "gemma": ("gemma", {**GROUPED, "head_dim": 8}),
    "gemma2": ("gemma2", {**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 5}),
    "granite": ("granite", {**GROUPED, "logits_scaling": 7.0, "embedding_multiplier": 3.0}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 0.3}),
}
ADAPTED: dict[str, list[str]] = {  # all projections of a block, by the names that peft gets
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
OF_ADAPTERS = {f"{family}, adapters": family for family in ADAPTED}
WITH_MEMORY = {"decoder, knn": "decoder", "llama, attention": "llama"}
SEGMENTED = "decoder, segments"
KINDS = [*OF_OURS, *OF_HUGGING_FACE, *OF_ADAPTERS, *WITH_MEMORY, SEGMENTED]
# Those whose heads and neurons can be cut out.
CUT = ["gpt2", "opt", "bloom", "gpt_neox", "llama", "mistral", "qwen2"]
FAMILIES = [*OF_OURS, *CUT]


def made(kind: str) -> Backbone:
    """A fresh model, in eval mode."""
    return copy.deepcopy(_built(kind))


def some_ids(rows: int = 3, length: int = BLOCK) -> Tensor:
    """(rows, length)"""
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(2))


@cache
def _built(kind: str) -> Backbone:
    if kind in WITH_MEMORY or kind == SEGMENTED:
        return _with_memory(kind)
    torch.manual_seed(0)
    model = _plain(kind)
    shake(model)
    return model.eval()


def _plain(kind: str) -> Backbone:
    if kind in OF_OURS:
        sizes = {"vocab_size": V, "block_size": BLOCK, "embedding_dim": 32, "layers": LAYERS, "heads": 4}
        return Decoder(**{**sizes, **OF_OURS[kind]})
    family = OF_ADAPTERS.get(kind, kind)
    architecture, options = OF_HUGGING_FACE[family]
    lora = LoRA(r=3, alpha=5.0, target_modules=ADAPTED[family]) if kind in OF_ADAPTERS else None
    return PretrainedLM(architecture=architecture, options=options, vocab_size=V, block_size=BLOCK, lora=lora)


def _with_memory(kind: str) -> Backbone:
    if kind == SEGMENTED:
        return MemoryLM(made("decoder, rotary"), [], segment_length=BLOCK // 2).eval()
    options: dict[str, Any] = {"memory_size": 20, "num_search_results": 3}
    reader: Reader = KNNReader(lam=0.5, **options) if kind.endswith("knn") else AttentionReader(**options)
    torch.manual_seed(0)
    model = MemoryLM(made(WITH_MEMORY[kind]), [reader])
    shake(reader)
    vectors = torch.randn(20, model.width, generator=torch.Generator().manual_seed(1))
    at = torch.arange(20)
    reader.bank.shared.add(vectors, Entries(tokens=at % V, documents=torch.full((20,), 7), positions=at))
    return model.eval()


@torch.no_grad()
def shake(model: nn.Module, std: float = 0.1) -> None:
    """Biases and norms too: what is 0 or 1 at first shows nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * std


# What is cut out of them


def some_dead(units: Units, *, more: int = 0) -> Tensor:
    """(L, N): the last but one of the first layer, and half of the second one (and `more`)."""
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[0, -2] = True
    dead[1, torch.arange(0, units.shape[1], 2)] = True
    dead[0, :more] = True
    return dead


def prune(units: Units, dead: Tensor, surgery: str = "remove", optimizer: Any = None) -> None:
    units.keep(dead & units.mask, optimizer)
    units.set_mask(~dead)
    if surgery == "remove":
        units.remove(dead, optimizer)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
