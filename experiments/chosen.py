"""What is kept of the first domain: texts, states and the model's own samples, chosen by ART, by k-means, or at random.

Shapes: N sequences, T tokens of each, D width, M texts kept, C categories, S tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from experiments.store import Stopwatch
from lightning_app.art.network import ART, SPAN
from lightning_app.art.rules import pool
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.models.backbone import Backbone
from lightning_app.models.generation import GenerationOptions, generate

BY_ART, BY_KMEANS, AT_RANDOM = CHOICES = ("ART", "k-means", "random")
NETWORK: dict[str, Any] = {"vigilance_quantile": 0.05}
OF_TOKENS: dict[str, Any] = {"vigilance": 0.7}
POOL = 2  # times as many samples are drawn as are kept


@dataclass(frozen=True)
class Sizes:
    """How much is looked at and kept.

    Attributes:
        shown: sequences of the first domain's training text that categories are learned from.
        tokens: states of single tokens that prototypes are learned from.
        prototypes: at most.
        samples: sequences of the model's own that are kept.
        fisher: sequences that the Fisher information is taken of.
    """

    shown: int = 1000
    tokens: int = 4000
    prototypes: int = 512
    samples: int = 128
    fisher: int = 200


@dataclass(frozen=True)
class Shown:
    """Sequences of the first domain as its model reads them.

    Attributes:
        embeddings: (N, D) mean last states.
        states: (N T, D) of the tokens.
        texts: (N, S) their beginnings, -1 behind the end.
    """

    embeddings: Tensor
    states: Tensor
    texts: Tensor


@torch.no_grad()
def shown(model: Backbone, text: TokenArray, block_size: int, *, at_most: int, seed: int) -> Shown:
    """Some blocks of a text, in random order."""
    windows = TokenWindows(text, block_size)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()[:at_most]
    embeddings, states, texts = [], [], []
    for start in range(0, len(order), 16):
        batch = windows.__getitems__(order[start : start + 16])
        last = model.states(batch.input_ids).last
        embeddings.append(pool(last, batch.attention_mask, "mean")[0])
        states.append(last[batch.attention_mask])
        texts.append(batch.input_ids.where(batch.attention_mask, -1)[:, :SPAN])
    return Shown(torch.cat(embeddings), torch.cat(states), torch.cat(texts))


def network(looked: Shown, held_out: Tensor, **options: Any) -> ART:
    """Categories of the first domain, with typical texts; the vigilance is calibrated on held-out text, and fixed."""
    art = ART(looked.embeddings.shape[1], **{**NETWORK, **options})
    for embeddings, texts in zip(looked.embeddings.split(16), looked.texts.split(16), strict=True):
        art.learn(embeddings, texts)
    art.calibrate(held_out)
    return art


def means(states: Tensor, n: int, seed: int) -> KMeans:
    return KMeans(min(n, len(states)), n_init=1, random_state=seed).fit(states.double().numpy())


# Texts


def typical(art: ART) -> Tensor:
    """(M, S) all texts that it keeps."""
    texts = art.texts[: len(art)].flatten(0, 1)
    return texts[texts[:, 0] >= 0].long()


def texts_by(choice: str, looked: Shown, art: ART, *, seed: int) -> Tensor:
    """(M, S) as many as ART keeps."""
    if choice == BY_ART:
        return typical(art)
    M = len(typical(art))
    if choice == AT_RANDOM:
        return looked.texts[torch.randperm(len(looked.texts), generator=torch.Generator().manual_seed(seed))[:M]]
    centres = torch.from_numpy(means(looked.embeddings, M, seed).cluster_centers_).float()
    return looked.texts[torch.cdist(centres, looked.embeddings).argmin(-1)]


# States


def states_by(choice: str, looked: Shown, sizes: Sizes, *, seed: int) -> Tensor:
    """(C, D) states of tokens, or prototypes of them: as many for each choice as ART has categories."""
    order = torch.randperm(len(looked.states), generator=torch.Generator().manual_seed(seed))[: sizes.tokens]
    states = looked.states[order]
    art = ART(states.shape[1], capacity=sizes.prototypes, **OF_TOKENS)
    for some in states.split(64):
        art.learn(some)
    if choice == BY_ART:  # its prototypes are directions
        return art.prototypes[: len(art)].clone() * states.norm(dim=-1).mean()
    if choice == AT_RANDOM:
        return states[: len(art)]
    return torch.from_numpy(means(states, len(art), seed).cluster_centers_).float()


# The model's own samples


@torch.no_grad()
def sampled(model: Backbone, n: int, length: int, *, start: int, vocab_size: int, seed: int) -> Tensor:
    """(n, length) texts that the model begins after the end of another one, at temperature 1."""
    parts = []
    for first in range(0, n, 64):
        prompt = torch.full((min(64, n - first), 1), start)
        options = GenerationOptions(max_new_tokens=length - 1, temperature=1.0, seed=1000 * seed + first)
        drawn = generate(model, prompt, options, vocab_size=vocab_size)
        parts.append(torch.cat([prompt, torch.stack(list(drawn), dim=1)], dim=1))
    return torch.cat(parts)


@torch.no_grad()
def embedded(model: Backbone, ids: Tensor) -> Tensor:
    """(N, D) mean last states of whole texts."""
    return torch.cat([model.states(some).last.mean(1) for some in ids.split(16)])


def balanced(wanted: np.ndarray, found: np.ndarray, n: int) -> list[int]:
    """Which `n` of the found to take, so that labels have the shares that they have among the wanted, as far as there
    are enough of each; the others in their order."""
    left = np.bincount(wanted, minlength=int(found.max(initial=0)) + 1) * n / len(wanted)
    taken = []
    for i, label in enumerate(found):
        if left[label] >= 0.5 and len(taken) < n:
            left[label] -= 1
            taken.append(i)
    rest = [i for i in range(len(found)) if i not in set(taken)]
    return sorted([*taken, *rest[: n - len(taken)]])


def samples_by(choice: str, drawn: Tensor, embeddings: Tensor, looked: Shown, art: ART, *, n: int, seed: int) -> Tensor:
    """(n, T) of those that were drawn: the first ones, or as many of each category as the first domain has of it."""
    if choice == AT_RANDOM:
        return drawn[:n]
    if choice == BY_ART:
        labels = [art.resonate(x).slots.numpy() for x in (looked.embeddings, embeddings)]
    else:
        clusters = means(looked.embeddings, len(art), seed)
        labels = [clusters.labels_, clusters.predict(embeddings.double().numpy())]
    return drawn[balanced(labels[0], labels[1], n)]


# All of it


@torch.no_grad()
def kept(
    model: Backbone,
    train: TokenArray,
    val: TokenArray,
    *,
    block_size: int,
    sizes: Sizes,
    vocab_size: int,
    start: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that arms keep of the first domain, by kind and choice, and the CPU seconds that each took.

    Args:
        vocab_size: ids that may be drawn.
        start: the id that ends texts.
    """
    model.eval()
    seconds: dict[str, float] = {}

    def timed(name: str, make: Callable[[], Any], *, after: str = "") -> Any:
        watch = Stopwatch()
        with watch:
            made = make()
        seconds[name] = watch.seconds + seconds.get(after, 0.0)
        return made

    looked = timed("shown", lambda: shown(model, train, block_size, at_most=sizes.shown, seed=seed))
    held_out = shown(model, val, block_size, at_most=sizes.shown, seed=seed).embeddings
    art = timed("network", lambda: network(looked, held_out), after="shown")
    found: dict[str, Any] = {"network": art.state_dict(), "categories": len(art), "vigilance": art.vigilance}
    T = block_size
    first = timed("sampled", lambda: sampled(model, sizes.samples, T, start=start, vocab_size=vocab_size, seed=seed))
    more = timed(
        "more",
        lambda: sampled(model, (POOL - 1) * sizes.samples, T, start=start, vocab_size=vocab_size, seed=seed + 10_000),
        after="sampled",
    )
    drawn = torch.cat([first, more])
    inner = timed("inner", lambda: embedded(model, drawn), after="more")
    seconds["inner"] += seconds["network"]
    for choice in CHOICES:
        found[f"texts, {choice}"] = timed(
            f"texts, {choice}", lambda c=choice: texts_by(c, looked, art, seed=seed), after="network"
        )
        found[f"prototypes, {choice}"] = timed(
            f"prototypes, {choice}", lambda c=choice: states_by(c, looked, sizes, seed=seed), after="shown"
        )
        found[f"samples, {choice}"] = timed(
            f"samples, {choice}",
            lambda c=choice: samples_by(c, drawn, inner, looked, art, n=sizes.samples, seed=seed),
            after="sampled" if choice == AT_RANDOM else "inner",
        )
    return found | {"seconds": seconds}
