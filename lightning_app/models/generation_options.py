"""How a text is continued. No torch is imported here: the command line tells of it before anything heavy is there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_app.errors import InputError

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # what a model's source may say
WHOLE = ("max_new_tokens", "top_k", "seed")


@dataclass(frozen=True)
class GenerationOptions:
    """How a text is continued.

    Attributes:
        max_new_tokens: at most so many tokens are added.
        temperature: divides the logits; 0 is greedy.
        top_k: only among the k most likely tokens; None: all.
        top_p: only among the most likely tokens that together have this probability.
        seed: of the draws, so that a text can be had again; of a batch, row i draws with seed + i.
        use_cache: keep keys and values of the positions seen (same tokens, much faster).
        min_p: only among the tokens with this share of the likeliest one's probability; 0: all.
        repetition_penalty: makes tokens that the text has, prompt included, less likely; 1: does not.
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    use_cache: bool = True
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, right, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0 (0 is greedy)"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("seed", -(2**63) <= self.seed < 2**63, "a number of 64 bits"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 1e-6 <= self.repetition_penalty <= 1e6, "in [1e-6, 1e6] (1 does nothing)"),
            *((name, not isinstance(getattr(self, name), float), "a whole number") for name in WHOLE),
        ):
            if not right:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}")
