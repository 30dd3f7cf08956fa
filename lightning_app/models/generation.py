"""Autoregressive generation with any backbone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.ops.sampling import sample


@dataclass(frozen=True)
class GenerationOptions:
    """How a text is continued.

    Attributes:
        max_new_tokens: at most so many tokens are added.
        temperature: divides the logits; 0 is greedy.
        top_k: only among the k most likely tokens; None: all.
        top_p: only among the most likely tokens that together have this probability.
        seed: of the draws, so that a text can be had again.
        use_cache: keep keys and values of the positions seen (same tokens, much faster).
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    use_cache: bool = True

    def __post_init__(self) -> None:
        for name, right, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0 (0 is greedy)"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
        ):
            if not right:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}")


def lay_out_for_generation(backbone: Backbone) -> None:
    """Store the matrices with more rows than columns by columns, in place, on a CPU.

    With a cache a step of one row multiplies each matrix by one vector; along the longer side that reads memory up to
    2.8 times as fast (docs/benchmarks.md). The values stay. Not for a model that trains on: the optimizer's state has
    the old order.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            weight = module.weight.data
            module.weight.data = weight.t().contiguous().t() if weight.device.type == "cpu" else weight


def _context_start(start: int, length: int, max_length: int | None) -> int:
    """Where the visible context starts; a full one loses its older half, so that the cache pays again for a while."""
    if max_length is None or length - start <= max_length:
        return start
    return length - max(1, max_length // 2)


@torch.inference_mode()
def generate(
    backbone: Backbone,
    ids: Tensor,
    options: GenerationOptions | None = None,
    *,
    vocab_size: int | None = None,
    eot: int | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of each row, (B,), until `max_new_tokens` or until every row has reached `eot`.

    Args:
        backbone: in eval mode for deterministic results; moved and cast by the caller.
        ids: (B, T) prompt, at least one token; only the last `max_length` are seen.
        options: see `GenerationOptions`.
        vocab_size: ids from here on are spare and never sampled; None: all ids are real.
        eot: end-of-text id; a row that has reached it yields it ever after. None: rows never end.

    Raises:
        InputError: an empty prompt.
    """
    options = options or GenerationOptions()
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise InputError(f"the prompt has shape {tuple(ids.shape)}; it must be (rows, tokens) with at least one token")
    generator = torch.Generator(ids.device).manual_seed(options.seed)
    start = max(0, ids.shape[1] - backbone.max_length) if backbone.max_length else 0
    cache, seen = None, start  # the cache holds the positions from start to seen
    finished = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    for _ in range(options.max_new_tokens):
        context = _context_start(start, ids.shape[1], backbone.max_length)
        if cache is None or context != start:
            start = seen = context
            cache = backbone.new_cache(ids.shape[0]) if options.use_cache else None
        states = backbone.hidden(backbone.embed(ids[:, seen:]), cache=cache)
        seen = ids.shape[1]
        logits = backbone.logits(states.last[:, -1:])[:, -1, :vocab_size]
        token = sample(
            logits, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, generator=generator
        )
        if eot is not None:
            token = torch.where(finished, eot, token)
            finished |= token == eot
        yield token
        if eot is not None and bool(finished.all()):
            return
        ids = torch.cat([ids, token[:, None]], dim=1)
