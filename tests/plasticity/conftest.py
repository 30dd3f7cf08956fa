"""A small random model of each family, whose every weight shows in its logits. Nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM

V, BLOCK = 31, 16
OF_OURS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "decoder without biases": {"bias": False},
    "decoder, rotary": {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False},
    "decoder, swiglu": {"activation": "swiglu", "attention_kernel": "matmul", "head_size": 10},
}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4}
OPT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 40, "word_embed_proj_dim": 32}
USUAL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
GROUPED = {**USUAL, "num_attention_heads": 8, "num_key_value_heads": 4}
OF_HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {  # model_type, options
    "gpt2": ("gpt2", GPT2),
    "opt": ("opt", OPT),
    "bloom": ("bloom", {"n_layer": 2, "hidden_size": 32, "n_head": 4}),
    "gpt_neox": ("gpt_neox", USUAL),
    "llama": ("llama", {**GROUPED, "head_dim": 10}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("qwen2", GROUPED),
}
FAMILIES = [*OF_OURS, *OF_HUGGING_FACE]
Build = Callable[[str], Backbone]


@cache
def _built(family: str) -> Backbone:
    torch.manual_seed(0)
    model: Backbone
    if family in OF_OURS:
        sizes = {"vocab_size": V, "block_size": BLOCK, "embedding_dim": 32, "layers": 2, "heads": 4}
        model = Decoder(**{**sizes, **OF_OURS[family]})
    else:
        architecture, options = OF_HUGGING_FACE[family]
        model = PretrainedLM(architecture=architecture, options=options, vocab_size=V, block_size=BLOCK)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


@pytest.fixture
def build() -> Build:
    """A fresh model of a family by name, in eval mode."""
    return lambda family: copy.deepcopy(_built(family))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, build: Build) -> Backbone:
    """Of each family."""
    return build(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    """(3, 16)"""
    return torch.randint(V, (3, BLOCK), generator=torch.Generator().manual_seed(2))
