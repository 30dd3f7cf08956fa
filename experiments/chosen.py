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
from lightning_app.models.generation import generate
from lightning_app.models.generation_options import GenerationOptions

BY_ART, BY_KMEANS, AT_RANDOM = "ART", "k-means", "random"
NETWORK: dict[str, Any] = {"vigilance_quantile": 0.05}
OF_TOKENS: dict[str, Any] = {"vigilance": 0.7}
POOL = 2  # times as many samples are drawn as are kept


@dataclass(frozen=True)
class Needs:
    """What must be there before texts, states and samples can be chosen."""

    texts: tuple[str, ...] = ()
    states: tuple[str, ...] = ("shown",)
    samples: tuple[str, ...] = ("drawn",)


CHOICES = {
    BY_ART: Needs(("art",), ("inner",), ("art", "read")),
    BY_KMEANS: Needs(("shown",), ("shown",), ("shown", "read")),
    AT_RANDOM: Needs(),
}


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


@dataclass(frozen=True)
class Inner:
    """States of tokens (N, D), and categories of them."""

    states: Tensor
    art: ART


def of_tokens(looked: Shown, sizes: Sizes, *, seed: int) -> Inner:
    order = torch.randperm(len(looked.states), generator=torch.Generator().manual_seed(seed))[: sizes.tokens]
    states = looked.states[order]
    art = ART(states.shape[1], capacity=sizes.prototypes, **OF_TOKENS)
    for some in states.split(64):
        art.learn(some)
    return Inner(states, art)


def states_by(choice: str, inner: Inner, *, seed: int) -> Tensor:
    """(C, D) states of tokens, or prototypes of them: as many for each choice as ART has categories."""
    C = len(inner.art)
    if choice == BY_ART:  # its prototypes are directions
        return inner.art.prototypes[:C].clone() * inner.states.norm(dim=-1).mean()
    if choice == AT_RANDOM:
        return inner.states[:C]
    return torch.from_numpy(means(inner.states, C, seed).cluster_centers_).float()


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


class Kept(dict[str, Any]):
    """Everything that arms keep of the first domain, by kind and choice; `seconds`: CPU time that each took to make."""

    def __init__(self) -> None:
        super().__init__(seconds={})

    def make(self, name: str, made: Callable[[], Any], *before: str) -> Any:
        """
        Args:
            before: what had to be there: its seconds count too.
        """
        watch = Stopwatch()
        with watch:
            self[name] = made()
        self["seconds"][name] = watch.seconds + sum(self["seconds"][one] for one in before)
        return self[name]

    def without(self, *names: str) -> dict[str, Any]:
        return {name: x for name, x in self.items() if name not in names}


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
    """
    Args:
        vocab_size: ids that may be drawn.
        start: the id that ends texts.
    """
    model.eval()
    found, held_out = Kept(), shown(model, val, block_size, at_most=sizes.shown, seed=seed).embeddings
    looked = found.make("shown", lambda: shown(model, train, block_size, at_most=sizes.shown, seed=seed))
    art = found.make("art", lambda: network(looked, held_out), "shown")
    inner = found.make("inner", lambda: of_tokens(looked, sizes, seed=seed), "shown")

    def draw(first: int) -> Tensor:
        n, own = sizes.samples, 2 * seed + first
        return sampled(model, n, block_size, start=start, vocab_size=vocab_size, seed=own)

    drawn = torch.cat([found.make("drawn", lambda: draw(0)), found.make("more", lambda: draw(1), "drawn")])
    read = found.make("read", lambda: embedded(model, drawn), "more")
    of = (drawn, read, looked, art)
    for choice, by in CHOICES.items():
        found.make(f"texts, {choice}", lambda c=choice: texts_by(c, looked, art, seed=seed), *by.texts)
        found.make(f"prototypes, {choice}", lambda c=choice: states_by(c, inner, seed=seed), *by.states)
        found.make(f"samples, {choice}", lambda c=choice: samples_by(c, *of, n=sizes.samples, seed=seed), *by.samples)
    found["network"], found["seconds"]["network"] = art.state_dict(), found["seconds"]["art"]
    return found.without("shown", "art", "inner", "drawn", "more", "read")
