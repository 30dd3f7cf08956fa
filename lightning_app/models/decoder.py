"""The scratch decoder-only Transformer. With the default options it is GPT-2 (Radford et al. 2019).

Shapes: B batch, T positions, D embedding_dim, H heads, K head_size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_app.errors import InputError
from lightning_app.models.attention import Dropout, Kernel, KVCache, attend, visible
from lightning_app.models.backbone import Backbone, Cache, HiddenStates


def rotary_tables(head_size: int, length: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin, (length, head_size) each (Su et al. 2021, arXiv:2104.09864, eq. 34; halves as in GPT-NeoX)."""
    frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + K/2) by its position's angle; cos and sin are (T, K) or (B, 1, T, K)."""
    first, second = x_BHTK.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BHTK * cos + turned * sin).to(x_BHTK.dtype)


class CausalSelfAttention(nn.Module):
    """Multi-head attention with one matrix for queries, keys and values: D -> 3 H K, and H K -> D.

    With gates, what a head adds is multiplied by 2 sigmoid(a linear function of the block's input), 1 at first.
    """

    def __init__(
        self,
        embedding_dim: int,
        heads: int,
        head_size: int,
        *,
        dropout: float,
        bias: bool,
        kernel: Kernel,
        gates: bool = False,
    ):
        super().__init__()
        self.heads, self.head_size, self.dropout, self.kernel = heads, head_size, dropout, kernel
        self.c_attn = nn.Linear(embedding_dim, 3 * heads * head_size, bias=bias)
        self.c_proj = nn.Linear(heads * head_size, embedding_dim, bias=bias)
        self.c_gate = nn.Linear(embedding_dim, heads) if gates else None

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        q, k, v = self._projected(x_BTD, rotary)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask=mask, dropout=dropout, kernel=self.kernel)
        if self.c_gate is not None:
            y = y * (2 * self.c_gate(x_BTD).sigmoid()).mT[..., None]  # (B, T, H) -> (B, H, T, 1)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, self.heads * self.head_size))

    def _projected(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, T, K) queries, keys and values."""
        qkv = self.c_attn(x_BTD).unflatten(-1, (3, self.heads, self.head_size)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return (q, k, v) if rotary is None else (rotate(q, *rotary), rotate(k, *rotary), v)

    def probabilities(
        self, x_BTD: Tensor, *, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None, **_others: Any
    ) -> Tensor:
        """(B, H, T, T) where each position of a whole text looks; `forward` never makes them."""
        q, k, _ = self._projected(x_BTD, rotary)
        seen = visible(mask, new=q.shape[-2], total=k.shape[-2], device=q.device)
        scores = (q * self.head_size**-0.5) @ k.transpose(-2, -1)
        return scores.float().masked_fill(~seen, -torch.inf).softmax(-1)


class FeedForward(nn.Module):
    """D -> 4 D -> D with GELU (GPT-2's tanh form), or SwiGLU (Shazeer 2020, arXiv:2002.05202) with as many weights."""

    def __init__(self, embedding_dim: int, *, activation: Literal["gelu", "swiglu"], bias: bool):
        super().__init__()
        self.gated = activation == "swiglu"
        inner = 32 * round(8 * embedding_dim / 3 / 32) or 32 if self.gated else 4 * embedding_dim
        self.c_fc = nn.Linear(embedding_dim, 2 * inner if self.gated else inner, bias=bias)
        self.c_proj = nn.Linear(inner, embedding_dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x = self.c_fc(x_BTD)
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            return self.c_proj(F.silu(gate) * value)
        return self.c_proj(F.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, attention: CausalSelfAttention, mlp: FeedForward, norms: tuple[nn.Module, nn.Module], dropout: float
    ):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = norms[0], attention, norms[1], mlp
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, **attention: Any) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attn(self.ln_1(x_BTD), **attention))
        return x_BTD + self.dropout(self.mlp(self.ln_2(x_BTD)))


class Decoder(Backbone):
    """A decoder-only Transformer, made from scratch.

    Args:
        vocab_size: V; linked to `data.vocab_size`.
        block_size: the most positions of a sequence; linked to `data.block_size`.
        embedding_dim: D.
        layers: number of blocks.
        heads: H.
        head_size: K, independent of the others; None: embedding_dim / heads.
        dropout: on embeddings, attention weights and both residual branches.
        tie_weights: the output matrix is the embedding matrix (GPT-2 does).
        bias: in the linear layers and LayerNorms (GPT-2 has them).
        positions: learned vectors, or rotary embedding (Su et al. 2021, arXiv:2104.09864).
        norm: LayerNorm, or RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467).
        activation: GELU (tanh form), or SwiGLU (Shazeer 2020, arXiv:2002.05202).
        head_gates: a gate for each attention head, from the block's input (Qiu et al. 2025, arXiv:2505.06708).
        attention_kernel: "auto" takes PyTorch's SDPA, but on CPUs plain matmul with dropout, and for bf16 up to 512
            positions without AMX.
        gradient_checkpointing: keep the input of each block alone and recompute the rest in the backward: less memory,
            about a third more time (Chen et al. 2016, arXiv:1604.06174).

    Raises:
        InputError: sizes that do not fit together.
    """

    max_length: int
    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(
        self,
        *,
        vocab_size: int = 257,
        block_size: int = 128,
        embedding_dim: int = 192,
        layers: int = 3,
        heads: int = 6,
        head_size: int | None = None,
        dropout: float = 0.0,
        tie_weights: bool = True,
        bias: bool = True,
        positions: Literal["learned", "rotary"] = "learned",
        norm: Literal["layernorm", "rmsnorm"] = "layernorm",
        activation: Literal["gelu", "swiglu"] = "gelu",
        head_gates: bool = False,
        attention_kernel: Kernel = "auto",
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        head_size = _default_head_size(embedding_dim, heads) if head_size is None else head_size
        _check_sizes(locals())
        self.vocab_size, self.width, self.max_length = vocab_size, embedding_dim, block_size
        self.attention_width = layers * heads * head_size
        self._config = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "embedding_dim": embedding_dim,
            "layers": layers,
            "heads": heads,
            "head_size": head_size,
            "dropout": dropout,
            "tie_weights": tie_weights,
            "bias": bias,
            "positions": positions,
            "norm": norm,
            "activation": activation,
            "head_gates": head_gates,
            "attention_kernel": attention_kernel,
            "gradient_checkpointing": gradient_checkpointing,
        }
        self.gradient_checkpointing = gradient_checkpointing

        def new_norm() -> nn.Module:
            return (
                nn.LayerNorm(embedding_dim, bias=bias) if norm == "layernorm" else nn.RMSNorm(embedding_dim, eps=1e-6)
            )

        def new_block() -> Block:
            attention = CausalSelfAttention(
                embedding_dim,
                heads,
                head_size,
                dropout=dropout,
                bias=bias,
                kernel=attention_kernel,
                gates=head_gates,
            )
            mlp = FeedForward(embedding_dim, activation=activation, bias=bias)
            return Block(attention, mlp, (new_norm(), new_norm()), dropout)

        wte = nn.Embedding(vocab_size, embedding_dim)
        self.transformer = nn.ModuleDict({"wte": wte})
        if positions == "learned":
            self.transformer["wpe"] = nn.Embedding(block_size, embedding_dim)
        self.transformer["drop"] = Dropout(dropout)
        self.transformer["h"] = nn.ModuleList(new_block() for _ in range(layers))
        self.transformer["ln_f"] = new_norm()
        self.lm_head = nn.Linear(embedding_dim, vocab_size, bias=False)
        if tie_weights:
            self.lm_head.weight = wte.weight
        if positions == "rotary":
            cos, sin = rotary_tables(head_size, block_size)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        self._initialise(layers)

    @torch.no_grad()
    def _initialise(self, layers: int) -> None:
        """N(0, 0.02), biases 0, residual projections / sqrt(2 layers) (Radford et al. 2019, section 2.3); gates 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("c_gate.weight"):
                nn.init.zeros_(parameter)
            elif parameter.dim() >= 2:
                std = 0.02 / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def _blocks(self) -> Sequence[Block]:
        return cast(Sequence[Block], self.transformer["h"])

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self._blocks

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    @classmethod
    def decisive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        names = ("heads", "head_size", "positions", "norm", "activation", "head_gates")
        return {name: options[name] for name in names if name in options}

    def embed(self, ids: Tensor) -> Tensor:
        return self.transformer["wte"](ids)

    def hidden(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        layers: Sequence[int] = (),
    ) -> HiddenStates:
        assert cache is None or isinstance(cache, KVCache)  # made by `new_cache`
        T, past = embeddings.shape[1], cache.length if cache is not None else 0
        if past + T > self.max_length:
            raise InputError(f"{past + T} positions do not fit a block_size of {self.max_length}: shorten the text")
        x, rotary = self._add_positions(embeddings, self._positions(mask, past, T, embeddings.device))
        run = self._recomputed if self.gradient_checkpointing and self.training and cache is None else Block.__call__
        wanted: dict[int, Tensor] = {}
        for i, block in enumerate(self._blocks):
            x = run(block, x, rotary=rotary, mask=mask, cache=cache, layer=i)
            if i in layers:
                wanted[i] = x
        if cache is not None:
            cache.advance(T)
        return HiddenStates(self.transformer["ln_f"](x), wanted)

    @staticmethod
    def _recomputed(block: Block, x: Tensor, **attention: Any) -> Tensor:
        """The block, of which the backward knows its input alone; it draws the same dropout again."""
        return checkpoint(block, x, use_reentrant=False, **attention)

    @staticmethod
    def _positions(mask: Tensor | None, past: int, new: int, device: torch.device) -> Tensor:
        """(T,), or (B, T) counted over the real tokens of each row."""
        if mask is None:
            return torch.arange(past, past + new, device=device)
        return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]

    def _add_positions(self, x: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        if "wpe" in self.transformer:
            return self.transformer["drop"](x + self.transformer["wpe"](positions)), None
        cos, sin = self.rotary_cos[positions], self.rotary_sin[positions]
        if positions.dim() == 2:  # one row of positions per sequence: broadcast over the heads
            cos, sin = cos[:, None], sin[:, None]
        return self.transformer["drop"](x), (cos, sin)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def new_cache(self, batch_size: int) -> KVCache:
        shapes = [(batch_size, b.attn.heads, self.max_length, b.attn.head_size) for b in self._blocks]
        weight = self.lm_head.weight
        autocast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        return KVCache(shapes, dtype=dtype, device=weight.device)


def _default_head_size(embedding_dim: int, heads: int) -> int:
    if heads < 1 or embedding_dim % heads:
        raise InputError(
            f"embedding_dim {embedding_dim} is not divisible by heads {heads}: change one of them, or give head_size"
        )
    return embedding_dim // heads


def _check_sizes(arguments: dict[str, Any]) -> None:
    for name in ("vocab_size", "block_size", "embedding_dim", "layers", "heads", "head_size"):
        if arguments[name] < 1:
            raise InputError(f"{name} is {arguments[name]}; it must be at least 1")
    if not 0 <= arguments["dropout"] < 1:
        raise InputError(f"dropout is {arguments['dropout']}; it must lie in [0, 1)")
    if arguments["positions"] == "rotary" and arguments["head_size"] % 2:
        raise InputError(f"rotary positions need an even head_size, not {arguments['head_size']}")
