"""Readers over a text of several blocks, against the formulas, position by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.runs import read
from lightning_app.data.batch import Batch
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.distribution import CacheReader, DistributionReader, KNNReader, TrimeReader
from lightning_app.memory.slots import Entries
from lightning_app.models.decoder import Decoder

V, T, D, BLOCKS = 40, 8, 16, 6
M, S, K = 20, 50, 7  # entries of a memory that fills, of a datastore, and results
LAM, THETA, TEMPERATURE, WEIGHT = 0.25, 0.3, 1.7, 0.6

Naive = Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # state (D,), logits (V,), earlier positions -> p (V,)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(vocab_size=V, block_size=T, embedding_dim=D, layers=2, heads=2, positions="rotary").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6 if p.dim() > 1 else 1)  # sharp
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, V, (BLOCKS * T + 1,), generator=torch.Generator().manual_seed(1))


def blocks(ids: Tensor) -> list[Batch]:
    """Of one document, one after the other."""
    whole = ids.unfold(0, T + 1, T)
    keys = torch.full((BLOCKS, T), 7)
    positions = torch.arange(BLOCKS * T).view(BLOCKS, T)
    return [Batch.of(whole[i : i + 1], keys=keys[i : i + 1], positions=positions[i : i + 1]) for i in range(BLOCKS)]


def states_of(decoder: Decoder, ids: Tensor) -> Tensor:
    """(N - 1, D), each block alone."""
    with torch.no_grad():
        return torch.cat([decoder.hidden(decoder.embed(part[None])).last[0] for part in ids[:-1].split(T)])


def nats(decoder: Decoder, ids: Tensor, naive: Naive) -> list[float]:
    """Of each token, after its own block's earlier positions and the newest `M` of the blocks before."""
    states = states_of(decoder, ids)
    found = []
    for t, state in enumerate(states):
        start = t // T * T
        earlier = [*range(max(0, start - M), start), *range(start, t)]
        with torch.no_grad():
            p = naive(state, decoder.logits(state[None])[0], earlier)
        found.append(-math.log(float(p[ids[t + 1]])))
    return found


def counted(tokens: Tensor, weights: Tensor) -> Tensor:
    return torch.zeros(V).scatter_add(0, tokens, weights)


def test_cache_trime_and_knn_are_what_their_formulas_say(decoder: Decoder, ids: Tensor):
    """Grave et al. 2017, Zhong et al. 2022 and Khandelwal et al. 2020."""
    states, following = states_of(decoder, ids), ids[1:]
    keys, tokens = torch.randn(S, D, generator=torch.Generator().manual_seed(2)), torch.arange(S) % V

    def cache(state: Tensor, logits: Tensor, earlier: Sequence[int]) -> Tensor:
        p = logits.softmax(-1)
        if not earlier:
            return p
        weights = (THETA * states[earlier] @ state).softmax(0)
        return LAM * counted(following[earlier], weights) + (1 - LAM) * p

    def trime(state: Tensor, logits: Tensor, earlier: Sequence[int]) -> Tensor:
        scores = logits.exp()
        if earlier:
            near = WEIGHT * (states[earlier] @ state / math.sqrt(D) / TEMPERATURE).exp()
            scores = scores + counted(following[earlier], near)
        return scores / scores.sum()

    def knn(state: Tensor, logits: Tensor, earlier: Sequence[int]) -> Tensor:
        distances = (keys - state).square().sum(-1)
        nearest = distances.topk(K, largest=False).indices
        weights = (-distances[nearest] / TEMPERATURE).softmax(0)
        return LAM * counted(tokens[nearest], weights) + (1 - LAM) * logits.softmax(-1)

    readers: dict[str, tuple[DistributionReader, Naive]] = {
        "cache": (CacheReader(lam=LAM, theta=THETA, memory_size=M), cache),
        "trime": (
            TrimeReader(
                temperature=TEMPERATURE, weight=WEIGHT, memory_size=M, num_search_results=M, writes="evaluation"
            ),
            trime,
        ),
        "knn": (KNNReader(lam=LAM, temperature=TEMPERATURE, memory_size=S, num_search_results=K), knn),
    }
    for name, (reader, naive) in readers.items():
        model = MemoryLM(decoder, [reader]).eval()
        if name == "knn":
            reader.bank.shared.add(keys, Entries(tokens, torch.full((S,), -1), torch.full((S,), -1)))
        found = read(model, blocks(ids)).nats
        np.testing.assert_allclose(found, nats(decoder, ids, naive), atol=5e-6, err_msg=name)
