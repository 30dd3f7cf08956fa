"""Does the controller's network know more of a head than the Taylor score that it is given?

Half of the heads are those whose damage a predictor learns; it is asked for the others. Beside it: the same network
without the Taylor score among its inputs, and the scores themselves, on the same heads.

Shapes: L layers, H heads, S sequences.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_app.plasticity.controller.networks import ANNController, HeadMetrics, expected_damage, features_of
from lightning_app.plasticity.importance import Sample, TaylorImportance, gate_gradients, mean_entropy
from lightning_app.plasticity.scores import spearman
from lightning_app.plasticity.units import Units

NETWORK, BLIND, TAYLOR, GRADIENT = "network", "network without Taylor", "Taylor alone", "gradient alone"
LEARNED = 0.5  # share of the heads
STEPS = 300  # of training a predictor, as in `ControllerImportance`


def compare(heads: Units, sample: Sample, damage: Tensor, *, splits: int) -> dict[str, list[float]]:
    """Spearman's correlation with the measured damage (L, H) of the heads that were not learned from, of each split."""
    gradients = gate_gradients(heads, sample)
    metrics = metrics_of(heads, sample, gradients)
    scores = {
        TAYLOR: TaylorImportance().by_gradients(gradients, heads, sample),
        GRADIENT: gradients.abs().mean(0),
    }
    found: dict[str, list[float]] = {name: [] for name in (NETWORK, BLIND, TAYLOR, GRADIENT)}
    for seed in range(splits):
        asked = _asked(heads.shape, seed)
        known = replace(metrics, damage=damage.where(~asked, math.nan))
        blind = replace(known, expected=torch.zeros(heads.shape))
        scores |= {NETWORK: predicted(known, seed=seed), BLIND: predicted(blind, seed=seed)}
        for name, values in scores.items():
            found[name].append(spearman(values[asked], damage[asked]))
    return found


def metrics_of(heads: Units, sample: Sample, gradients: Tensor) -> HeadMetrics:
    """From (S, L, H) gradients at the gates; without any damage."""
    length, slope = sample.batches[0].input_ids.shape[1], gradients.mean(0)
    return HeadMetrics(
        entropy=mean_entropy(heads, sample),
        gradient=gradients.abs().mean(0),
        age=torch.zeros(heads.shape),
        slope=slope,
        expected=expected_damage(slope, gradients.square().mean(0), heads.mask, tokens=length),
        damage=torch.full(heads.shape, math.nan, dtype=torch.float64),
    )


def _asked(shape: tuple[int, int], seed: int) -> Tensor:
    """(L, H) True at the heads that are not learned from."""
    n = math.prod(shape)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    asked = torch.ones(n, dtype=torch.bool)
    asked[order[: round(LEARNED * n)]] = False
    return asked.view(shape)


def predicted(metrics: HeadMetrics, *, seed: int) -> Tensor:
    """(L, H) by a network that has learned the damages which are known."""
    network = ANNController((metrics.entropy.shape[0], metrics.entropy.shape[1]), controller_lr=0.01, seed=seed)
    network.learn_damage(metrics, steps=STEPS)
    with torch.no_grad():
        return network.predicted_damage(features_of(metrics)).double()


def means(by_seed: list[dict[str, list[float]]]) -> dict[str, np.ndarray]:
    """(seeds,) mean over the splits, by name."""
    return {name: np.array([np.mean(one[name]) for one in by_seed]) for name in by_seed[0]}
