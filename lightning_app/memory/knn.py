"""Next-token distributions out of neighbours, their mixture with a model's, and the choice of its weights.

Shapes: (...) any leading ones, N tokens, K neighbours, V vocabulary, E experts. Logarithms are natural: nats.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_app.errors import InputError

TEMPERATURES = tuple(2.0**i for i in range(-6, 13))
LAMS = (0.0, *(i / 20 for i in range(1, 20)))
CHUNK = 2**22  # weights that are worked on at once: 16 MiB in fp32


def neighbour_weights(distances: Tensor, found: Tensor, *, temperature: Tensor | float) -> Tensor:
    """softmax(-d / T) over the neighbours that were found (..., K), float32; 0 for others, and where there are none.

    Khandelwal et al. 2020 (arXiv:1911.00172), eq. 2.
    """
    scores = (-distances.float() / temperature).masked_fill(~found, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    weights = (scores - highest.where(highest.isfinite(), 0.0)).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1.0)  # the nearest weighs 1, so a sum below 1 is 0


def spread(weights: Tensor, tokens: Tensor, *, vocab_size: int) -> Tensor:
    """(..., K) weights and next tokens -> p (..., V): each token has the weight of its neighbours together.

    Khandelwal et al. 2020 (arXiv:1911.00172), eq. 2. What has no weight may have any token. Rows without any are all 0.
    """
    p = weights.new_zeros(*tokens.shape[:-1], vocab_size)
    return p.scatter_add(-1, tokens.clamp_min(0), weights)


def interpolated(log_p: Tensor, p_memory: Tensor, *, lam: Tensor | float) -> Tensor:
    """log(lam p_memory + (1 - lam) p) of log p (..., V) and a memory's p (..., V), in float32.

    Khandelwal et al. 2020 (arXiv:1911.00172), eq. 3. Rows where the memory's p is 0 everywhere keep log p unchanged, as
    do all rows with a lam of 0.
    """
    lam = torch.as_tensor(lam, dtype=torch.float32, device=log_p.device)
    lam = torch.where(p_memory.sum(-1, keepdim=True) > 0, lam, 0.0)  # (..., 1)
    there = p_memory > 0
    log_memory = p_memory.where(there, 1.0).log().masked_fill(~there, -torch.inf)  # log 0 has no gradient
    return torch.logaddexp(log_p.float() + torch.log1p(-lam), log_memory + lam.log())


def joined_with_memory(logits: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
    """log(exp(logit_w) + sum of exp(score) over the entries with next token w) (..., V), unnormalised, in float32.

    Zhong et al. 2022 (arXiv:2205.12674), eq. 4: a softmax of it is the probability. The entries' exponentials are
    summed relative to the highest logit or score of their row, so nothing overflows.

    Args:
        logits: (..., V).
        scores: (..., K) similarity / temperature of each entry; -inf where it must not be read.
        tokens: (..., K) the next token of each entry.
    """
    logits, scores = logits.float(), scores.float()
    if not scores.shape[-1]:
        return logits
    highest = torch.maximum(logits.amax(-1, keepdim=True), scores.amax(-1, keepdim=True)).detach()  # (..., 1)
    mass = torch.zeros_like(logits).scatter_add(-1, tokens.clamp_min(0), (scores - highest).exp())
    seen = mass > 0
    with_memory = highest + torch.log((logits - highest).exp() + mass.where(seen, 1.0))
    return torch.where(seen, with_memory, logits)


@dataclass(frozen=True)
class Interpolation:
    """What `tuned_interpolation` chose.

    Attributes:
        lam: weight of the memory, from 0 to below 1.
        temperature: of the distances.
        nats: mean -log p of the tokens that it was chosen on.
    """

    lam: float
    temperature: float
    nats: float


def p_of_target(distances: Tensor, match: Tensor, *, temperature: float) -> Tensor:
    """(N, K) distances, and whether each neighbour's next token is the target -> p_memory(target) (N,)."""
    step = max(1, CHUNK // max(1, distances.shape[1]))
    parts = zip(distances.split(step), match.split(step), strict=True)
    return torch.cat([(neighbour_weights(d, d.isfinite(), temperature=temperature) * hit).sum(-1) for d, hit in parts])


def mixture_nats(p_model: Tensor, p_memory: Tensor, *, lam: float, found: Tensor) -> float:
    """Mean -log of the mixture over N tokens; those that found nothing keep the model's p."""
    mixed = torch.where(found, lam * p_memory + (1 - lam) * p_model, p_model)
    return float(-mixed.double().log().mean())


def tuned_interpolation(
    p_model: Tensor,
    distances: Tensor,
    match: Tensor,
    *,
    lams: Sequence[float] = LAMS,
    temperatures: Sequence[float] = TEMPERATURES,
    rounds: int = 2,
) -> Interpolation:
    """The weight and the temperature with the fewest nats on these tokens, which must not be those of a test.

    A grid first, then `rounds` finer ones around the best: half the spacing each time.

    Args:
        p_model: (N,) the model's probability of each target.
        distances: (N, K) of the neighbours; inf where there is none.
        match: (N, K) bool, whether the neighbour's next token is the target.
    """
    if not len(p_model):
        raise InputError("0 tokens to tune lam and temperature on: give a validation text")
    found = distances.isfinite().any(-1)
    tried: list[Interpolation] = []

    def try_all(lams: Sequence[float], temperatures: Sequence[float]) -> Interpolation:
        for T in temperatures:
            p_memory = p_of_target(distances, match, temperature=T)
            tried.extend(Interpolation(x, T, mixture_nats(p_model, p_memory, lam=x, found=found)) for x in lams)
        return min(tried, key=lambda one: one.nats)

    best = try_all(lams, temperatures)
    for n in range(1, rounds + 1):
        around = [best.temperature * 2.0 ** (i / 2**n) for i in (-1, 0, 1)]
        nearby = [x for i in (-1, 0, 1) if 0 <= (x := best.lam + i / 20 / 2**n) < 1]
        best = try_all(nearby, around)
    return best


def mixture_weights(probabilities: Tensor, *, steps: int = 200) -> Tensor:
    """(N, E) probability of each target under each expert -> the weights (E,) of their mixture with the fewest nats.

    Expectation-maximisation (Dempster, Laird and Rubin 1977): the likelihood is concave in the weights, so it finds
    their maximum from the even start.
    """
    if not len(probabilities):
        raise InputError("0 tokens to find mixture weights on: give a validation text")
    p = probabilities.double()
    weights = p.new_full((p.shape[1],), 1 / p.shape[1])
    for _ in range(steps):
        shares = p * weights
        weights = (shares / shares.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).mean(0)
        weights = weights / weights.sum()
    return weights
