"""How families of models lay out the projections of attention and of the feed-forward layer: one small adapter each.

A model whose layout none of them knows needs one more: a class with a `match`, added to ATTENTION or FEED_FORWARD.

Shapes: D width, H query heads, G groups of keys and values, K head size, M neurons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import CausalSelfAttention
from lightning_app.models.lora import adapters_of
from lightning_app.plasticity.layout import Layer, Part

# Names of numbers that families compute with, and that follow the number of heads.
COUNTS = ("heads", "num_heads", "n_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads", "split_size")


class Layout(ABC):
    """One way to lay out projections."""

    @abstractmethod
    def match(self, module: nn.Module) -> Layer | None:
        """The units of a module that is laid out like this, else None."""


@dataclass(frozen=True)
class FusedBlocks(Layout):
    """Queries, keys and values in one matrix, one after the other: q of all heads, k of all, v of all (GPT-2); perhaps
    one more, for a gate of each head."""

    qkv: str = "c_attn"
    out: str = "c_proj"
    gate: str = "c_gate"

    def match(self, module: nn.Module) -> Layer | None:
        found = _fused(module, self.qkv, self.out)
        if found is None:
            return None
        qkv, out, H, K = found
        gates = [(gate, _rows(H, 1)) for gate in _children(module, self.gate) or []]
        return _layer(module, out, H, [(qkv, torch.cat([_rows(H, K) + i * H * K for i in range(3)], dim=1)), *gates])


@dataclass(frozen=True)
class FusedPerHead(Layout):
    """Queries, keys and values in one matrix, head by head: q, k and v of the first, then those of the next (BLOOM,
    GPT-NeoX). A bias for each head that is handed in (BLOOM's alibi) is cut to the heads that are there."""

    qkv: str = "query_key_value"
    out: str = "dense"

    def match(self, module: nn.Module) -> Layer | None:
        found = _fused(module, self.qkv, self.out)
        if found is None:
            return None
        qkv, out, H, K = found
        layer = _layer(module, out, H, [(qkv, _rows(H, 3 * K))])
        layer.biased = module
        return layer


@dataclass(frozen=True)
class Separate(Layout):
    """A matrix each for queries, keys and values (OPT, LLaMA). Where several query heads share keys and values, the
    unit is the group: nothing smaller can be cut out."""

    out: str

    def match(self, module: nn.Module) -> Layer | None:
        found = _children(module, "q_proj", "k_proj", "v_proj", self.out)
        if found is None:
            return None
        q, k, v, out = found
        H, K = _heads(module, out)
        G = _outputs(k) // K
        if _outputs(q) != H * K or _outputs(v) != _outputs(k) or G == 0 or H % G:
            return None
        rows = _rows(G, K)
        layer = _layer(module, out, G, [(q, _rows(G, H // G * K)), (k, rows), (v, rows)])
        layer.query_heads = H // G
        return layer


@dataclass(frozen=True)
class FeedForwardLayout(Layout):
    """Matrices into the inner layer and one out of it; a first matrix of twice the size holds gates, then values."""

    into: tuple[str, ...]
    out: str

    def match(self, module: nn.Module) -> Layer | None:
        found = _children(module, *self.into, self.out)
        if found is None:
            return None
        *into, out = found
        M, rows = _inputs(out), []
        for matrix in into:
            times = _outputs(matrix) // M
            if times not in (1, 2) or _outputs(matrix) != times * M:
                return None
            rows.append((matrix, torch.stack([torch.arange(M) + i * M for i in range(times)], dim=1)))
        return _layer(module, out, M, rows, counted=False)


ATTENTION: list[Layout] = [FusedBlocks(), FusedPerHead(), Separate("out_proj"), Separate("o_proj"), Separate("dense")]
FEED_FORWARD: list[Layout] = [
    FeedForwardLayout(("c_fc",), "c_proj"),
    FeedForwardLayout(("fc1",), "fc2"),
    FeedForwardLayout(("fc_in",), "fc_out"),
    FeedForwardLayout(("dense_h_to_4h",), "dense_4h_to_h"),
    FeedForwardLayout(("gate_proj", "up_proj"), "down_proj"),
]


def find_layers(backbone: Backbone, layouts: Sequence[Layout]) -> list[tuple[nn.Module, Layer]]:
    """All modules of a model that one of the layouts matches, with their units, in the model's order."""
    found = []
    for module in backbone.modules():
        layer = next((layer for layout in layouts if (layer := layout.match(module)) is not None), None)
        if layer is not None:
            found.append((module, layer))
    return found


def _children(module: nn.Module, *names: str) -> list[nn.Module] | None:
    """Children of these names, if all are there and have a weight matrix."""
    found = [module._modules.get(name) for name in names]
    matrices = [child for child in found if child is not None and "weight" in _base(child)._parameters]
    matrices = [child for child in matrices if _base(child).get_parameter("weight").dim() == 2]
    return matrices if len(matrices) == len(names) else None


def _fused(module: nn.Module, qkv: str, out: str) -> tuple[nn.Module, nn.Module, int, int] | None:
    """Both matrices, H and K, where the first makes three numbers for each that the second reads."""
    found = _children(module, qkv, out)
    if found is None or _outputs(found[0]) != 3 * _inputs(found[1]):
        return None
    return found[0], found[1], *_heads(module, found[1])


def _base(matrix: nn.Module) -> nn.Module:
    """The projection itself, where it has adapters."""
    found = adapters_of(matrix)
    return matrix if found is None else found[0]


def _inputs(matrix: nn.Module) -> int:
    return _base(matrix).get_parameter("weight").shape[_in_dim(matrix)]


def _outputs(matrix: nn.Module) -> int:
    return _base(matrix).get_parameter("weight").shape[1 - _in_dim(matrix)]


def _in_dim(matrix: nn.Module) -> int:
    """nn.Linear has (outputs, inputs); Hugging Face's Conv1D has (inputs, outputs)."""
    return 1 if isinstance(_base(matrix), nn.Linear) else 0


def _heads(module: nn.Module, out: nn.Module) -> tuple[int, int]:
    """H and K of an attention module, which says at least its head size."""
    size = next((getattr(module, name) for name in ("head_dim", "head_size") if name in vars(module)), None)
    if not isinstance(size, int) or size < 1 or _inputs(out) % size:
        raise InputError(
            f"{type(module).__name__} does not say its head size (head_dim or head_size): write a layout for it in "
            "lightning_app/plasticity/families.py"
        )
    return _inputs(out) // size, size


def _rows(n: int, each: int) -> Tensor:
    """(n, each) positions of n units, one after the other."""
    return torch.arange(n * each).view(n, each)


def _layer(
    module: nn.Module, out: nn.Module, n: int, into: Sequence[tuple[nn.Module, Tensor]], *, counted: bool = True
) -> Layer:
    """Parts of the matrices (with their biases and adapters) that make the units' numbers, and of the one that reads
    them."""
    parts = []
    for matrix, index in into:
        parts.append(Part(_base(matrix), "weight", 1 - _in_dim(matrix), index))
        if _base(matrix)._parameters.get("bias") is not None:
            parts.append(Part(_base(matrix), "bias", 0, index))
        if adapters := adapters_of(matrix):
            parts.append(Part(adapters[2], "weight", 0, index))  # the rows of B
    index = _rows(n, _inputs(out) // n)
    parts.append(Part(_base(out), "weight", _in_dim(out), index, is_input=True))
    if adapters := adapters_of(out):
        parts.append(Part(adapters[1], "weight", 1, index, is_input=True))  # the columns of A
    counts = []
    if counted:
        numbers = {name: vars(module)[name] for name in COUNTS if name in vars(module)}
        counts = [(module, name, number // n) for name, number in numbers.items() if number % n == 0]
    return Layer(out, parts, counts, n)


def attention_probabilities(module: nn.Module, arguments: Any, kwargs: Any, output: Any) -> Tensor:
    """(B, H, T, S) of one call of an attention module: our own computes them again, Hugging Face's return them."""
    if isinstance(module, CausalSelfAttention):
        return module.probabilities(*arguments, **kwargs)
    return output[1]
