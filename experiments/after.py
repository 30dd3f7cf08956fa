"""The arms that are read off a trained model: cache, kNN, both; n-grams; and kNN against the size of its datastore.

Their weights are chosen on validation. Mixtures are computed from each side's probability of the target: what the
readers give (checked on some blocks), for one pass over the text. Shapes: N tokens, K neighbours, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from experiments import baselines, counted, gated
from experiments.runs import Scores, blocks, context_of, read, seconds_per_token
from experiments.statistics import bits_per_byte
from experiments.texts import Texts
from lightning_app.data.batch import Batch
from lightning_app.former import options_of_today
from lightning_app.memory.exact_search import nearest
from lightning_app.memory.knn import Interpolation, mixture_weights, p_of_target
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.bank import MemoryUpdate
from lightning_app.memory.readers.base import Reader, TokenContext
from lightning_app.memory.readers.distribution import CacheReader, KNNReader
from lightning_app.memory.slots import joined
from lightning_app.models.losses import token_nll
from lightning_app.peers import token_ids

ARMS = ("cache", "knn", "knn + cache")
CHECKED_BLOCKS = 100
RECALL_QUERIES = 1000
OCTAVES = range(-6, 2)  # of the neighbours' temperature, from their mean distance
Keep = Callable[..., None]
Result = tuple[str, dict[str, Any], np.ndarray]  # arm, record and nats (N,)


@dataclass(frozen=True)
class Options:
    """Of the post-hoc arms.

    Attributes:
        cache_size: states.
        k: neighbours.
        index: of the datastore, once it has `index_from` entries.
        thetas: of the cache, tried on validation, each times 1 / D.
        tuning_blocks: of the validation text that weights are chosen on.
        sizes: of the datastore, for the picture.
        curve_every: of so many blocks of the test text the picture shows one.
        gated: how the arms with a gate are taught.
    """

    cache_size: int = 2000
    k: int = 512
    index: tuple[tuple[str, Any], ...] = (("index_type", "ivf"), ("num_clusters", 1024), ("nprobe", 32))
    index_from: int = 50_000
    thetas: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 11.0, 16.0, 23.0, 32.0)
    tuning_blocks: int = 300
    sizes: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 100_000, 300_000)
    curve_every: int = 8
    gated: gated.Options = gated.Options()  # noqa: RUF009

    def memory(self, size: int) -> dict[str, Any]:
        """Options of a datastore."""
        return {
            "memory_size": size,
            "num_search_results": self.k,
            **(dict(self.index) if size >= self.index_from else {}),
        }


@dataclass(frozen=True)
class Looked:
    """What the model, its neighbours and its cache say of a text.

    Attributes:
        distances, match: (N, K) of the neighbours, and whether their next token is the target.
        cache: (N, thetas) the cache's probability of the target; -1 where the cache is empty.
    """

    scores: Scores
    distances: Tensor
    match: Tensor
    cache: Tensor

    @property
    def model(self) -> Tensor:
        """(N,) the model's probability of the target."""
        return torch.from_numpy(np.exp(-self.scores.nats))

    def with_cache(self, p: Tensor, theta: int, *, lam: float) -> Tensor:
        """(N,) probabilities of the target -> mixed with the cache's."""
        p_cache = self.cache[:, theta].double()
        return torch.where(p_cache < 0, p, lam * p_cache + (1 - lam) * p)

    def sides(self, p_counts: Tensor) -> counted.Sides:
        """With what counts say, of the same text from its beginning on."""
        caches = [self.with_cache(self.model, i, lam=1.0) for i in range(self.cache.shape[1])]
        return counted.Sides(self.model, p_counts[: len(self.model)], torch.stack(caches, dim=1))

    def knn(self, temperature: float) -> Tensor:
        """(N,) the neighbours' probability of the target; the model's where there are none."""
        p = p_of_target(self.distances, self.match, temperature=temperature).double()
        return torch.where(self.distances.isfinite().any(-1), p, self.model)


def arms_of(options: Options, *, first: bool) -> tuple[str, ...]:
    """All lines that `run` leaves; the first seed draws the picture too."""
    both = (*ARMS, *counted.ARMS, *gated.ARMS)
    return (*both, *(f"knn of {size}" for size in options.sizes)) if first else both


def run(
    plain: MemoryLM, texts: Texts, test: list[Batch], options: Options, *, seed: int, missing: Sequence[str], keep: Keep
) -> None:
    """Build, tune, test, and keep what is missing."""
    entries = _entries(plain, texts, test)
    tuning = list(blocks(texts.val, test[0].input_ids.shape[1], at_most=options.tuning_blocks))
    if {*ARMS, *counted.ARMS, *gated.ARMS} & set(missing):
        model = with_readers(plain, options, entries)
        tuned, tested = look(model, tuning, options), look(model, test, options)
        chosen = _tune(tuned, options, model)
        results = _test(model, texts, test, tested, chosen, options)
        results += _with_counts(model, texts, test, tuned, tested, options)
        taught: Iterable[Result] = ()
        if set(gated.ARMS) & set(missing):
            start = _start({arm: record for arm, record, _ in results}, plain, options)
            taught = gated.run(plain, texts, tuning, test, start, options.gated, seed=seed)
        for arm, record, nats in chain(results, taught):
            if arm in missing:
                keep(arm, record, nats)
    for size in options.sizes:
        if f"knn of {size}" in missing:
            keep(f"knn of {size}", _of_size(plain, texts, tuning, test, size, entries, options, seed=seed))


def _start(found: Mapping[str, dict[str, Any]], plain: MemoryLM, options: Options) -> gated.Start:
    """Where the arms with a gate begin, from the records of those with fixed weights."""
    cache, both, width = found["cache"], found[counted.WITH_CACHE], plain.width
    return gated.Start(
        cache_size=options.cache_size,
        lam=cache["weights"][1],
        theta=cache["theta"] / width,
        weights=both["weights"],
        cache_theta=both["theta"] / width,
        counts_bytes=found[counted.COUNTS]["memory_bytes"],
    )


def with_readers(plain: MemoryLM, options: Options, entries: MemoryUpdate) -> MemoryLM:
    """The same backbone with a datastore of these entries, and an empty cache."""
    knn = KNNReader(**options_of_today(options.memory(len(entries.rows)), "KNNReader"))
    model = MemoryLM(plain.backbone, [knn, CacheReader(memory_size=options.cache_size)])
    knn.bank.write(entries, training=False)
    return cast(MemoryLM, model.eval())


def only(model: MemoryLM, readers: Sequence[Reader]) -> MemoryLM:
    """The same model with some of its readers."""
    part = MemoryLM(model.backbone, [])
    part.readers = cast(Sequence[Reader], nn.ModuleList(readers))
    return cast(MemoryLM, part.eval())


@torch.no_grad()
def _entries(plain: MemoryLM, texts: Texts, like: list[Batch]) -> MemoryUpdate:
    """States and next tokens of the training text."""
    parts = []
    for batch in blocks(texts.train, like[0].input_ids.shape[1]):
        context = context_of(batch)
        states = plain.backbone.hidden(plain.backbone.embed(batch.input_ids)).last
        parts.append(context.update_of(states, context.entries.tokens >= 0))
    return joined(parts)


@torch.no_grad()
def look(model: MemoryLM, batches: list[Batch], options: Options) -> Looked:
    """Read a text in order, the cache following."""
    knn, cache = cast(list[Any], list(model.readers))
    cache.bank.begin_evaluation()
    nats, parts = [], []
    for batch in batches:
        context, targets = context_of(batch), batch.targets
        states = model.backbone.hidden(model.backbone.embed(batch.input_ids)).last
        nats.append(token_nll(model.backbone.logits(states), targets))
        parts.append(_target_of(knn, cache, states, context, targets, options))
        cache.bank.write(context.update_of(states, context.new & (context.entries.tokens >= 0)), training=False)
    cache.bank.end_evaluation()
    return Looked(Scores.of(batches, nats), *(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _target_of(
    knn: KNNReader, cache: CacheReader, states: Tensor, context: TokenContext, targets: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """`distances`, `match` and `cache` of a block (1, T)."""
    real = targets[0] >= 0
    found, seen = knn.neighbours(states, context), cache.neighbours(states, context)
    distances, match = (x[0][real] for x in (found.distances, found.entries.tokens == targets[..., None]))
    to_seen, hit = (x[0][real] for x in (seen.distances, seen.entries.tokens == targets[..., None]))
    width = states.shape[-1]
    p = torch.stack([p_of_target(to_seen, hit, temperature=width / theta) for theta in options.thetas], dim=1)
    return distances, match, torch.where(to_seen.isfinite().any(-1, keepdim=True), p, -1.0)


@dataclass(frozen=True)
class Chosen:
    """What validation chose.

    Attributes:
        cache_theta, both_theta: numbers of `Options.thetas`.
        cache: weights of model and cache.
        knn: of the neighbours alone.
        both: weights of model, neighbours (at `knn`'s temperature) and cache.
        nats: mean on the tuning blocks, of each arm.
    """

    cache_theta: int
    cache: list[float]
    knn: Interpolation
    both_theta: int
    both: list[float]
    nats: dict[str, float]


def _tune(looked: Looked, options: Options, model: MemoryLM) -> Chosen:
    knn = _best_temperature(looked)
    p_knn = looked.knn(knn.temperature)
    cache_theta, cache, cache_nats = _best_theta(looked, [looked.model])
    both_theta, both, both_nats = _best_theta(looked, [looked.model, p_knn])
    nats = {"cache": cache_nats, "knn": knn.nats, "knn + cache": both_nats}
    return Chosen(cache_theta, cache, knn, both_theta, both, nats)


def _best_temperature(looked: Looked) -> Interpolation:
    """Of the neighbours: as many are tried as of the cache's."""
    scale = float(looked.distances[looked.distances.isfinite()].mean())
    number, weights, nats = _best([looked.model, looked.knn(scale * 2.0**octave)] for octave in OCTAVES)
    return Interpolation(weights[1], scale * 2.0 ** OCTAVES[number], nats)


def _best_theta(looked: Looked, others: list[Tensor]) -> tuple[int, list[float], float]:
    """Number of the theta, weights with the cache's last, and mean nats."""
    thetas = range(looked.cache.shape[1])
    return _best([*others, looked.with_cache(others[0], i, lam=1.0)] for i in thetas)


def _best(mixtures: Iterable[Sequence[Tensor]]) -> tuple[int, list[float], float]:
    """Of mixtures, each of E probabilities (N,): the number, the weights and the mean nats of the best."""
    tried = []
    for number, sides in enumerate(mixtures):
        p = torch.stack(list(sides), dim=1)  # (N, E)
        weights = mixture_weights(p)
        tried.append((number, weights.tolist(), float(-(p @ weights).log().mean())))
    return min(tried, key=lambda one: one[2])


def _test(
    model: MemoryLM, texts: Texts, test: list[Batch], looked: Looked, chosen: Chosen, options: Options
) -> list[Result]:
    p_knn = looked.knn(chosen.knn.temperature)
    lam = chosen.knn.lam
    of_knn, of_cache = _lams(chosen.both)
    p = {
        "cache": looked.with_cache(looked.model, chosen.cache_theta, lam=chosen.cache[1]),
        "knn": lam * p_knn + (1 - lam) * looked.model,
        "knn + cache": looked.with_cache(of_knn * p_knn + (1 - of_knn) * looked.model, chosen.both_theta, lam=of_cache),
    }
    weights = {"cache": chosen.cache, "knn": [1 - lam, lam], "knn + cache": chosen.both}
    results = []
    for arm in ARMS:
        nats = -p[arm].log().numpy()
        readers = _set(model, arm, chosen, options)
        record = {
            **_facts(only(model, readers), test[:CHECKED_BLOCKS], nats),
            "weights": weights[arm],
            "temperature": chosen.knn.temperature if "knn" in arm else None,
            "theta": options.thetas[chosen.both_theta if "knn" in arm else chosen.cache_theta]
            if "cache" in arm
            else None,
            "tuning_nats": chosen.nats[arm],
            "test_bpb": bits_per_byte(nats, looked.scores.n_bytes(texts.test, texts.token_bytes)),
            **(recall(cast(KNNReader, readers[0]), texts, model, options) if arm == "knn" else {}),
        }
        results.append((arm, record, nats))
    return results


def _with_counts(
    model: MemoryLM, texts: Texts, test: list[Batch], tuned: Looked, tested: Looked, options: Options
) -> list[Result]:
    """N-grams of the training text alone, with the model, and with its cache too."""
    counts = baselines.counts_of(token_ids(texts.train), len(texts.token_bytes))
    start = time.process_time()
    p_tested = baselines.p_of_next(counts, token_ids(texts.test))
    of_counts = (time.process_time() - start) / len(p_tested)
    p_tuned = baselines.p_of_next(counts, token_ids(texts.val))
    cache, some, size = model.readers[1], test[:CHECKED_BLOCKS], counts.n_bytes
    own = {  # readers and parameters beside the counts
        counted.ALONE: (0.0, 0, 0),
        counted.COUNTS: (seconds_per_token(only(model, []), some), 0, 1),
        counted.WITH_CACHE: (seconds_per_token(only(model, [cache]), some), memory_bytes(cache), 1),
    }
    parameters = sum(p.numel() for p in model.backbone.parameters())
    n_bytes, results = tested.scores.n_bytes(texts.test, texts.token_bytes), []
    for arm, mixed in counted.mixtures(tuned.sides(p_tuned), tested.sides(p_tested)).items():
        seconds, more_bytes, with_model = own[arm]
        record = {
            "parameters": parameters * with_model,
            "memory_bytes": size + more_bytes,
            "seconds_per_token": of_counts + seconds,
            "test_bpb": bits_per_byte(-mixed.p.log().numpy(), n_bytes),
            **counted.facts(mixed, options.thetas),
        }
        results.append((arm, record, -mixed.p.log().numpy()))
    return results


def _set(model: MemoryLM, arm: str, chosen: Chosen, options: Options) -> list[Reader]:
    """The readers of an arm, with its weights: lam of the second reader first, that of the first of what is left."""
    knn, cache = cast(list[Any], list(model.readers))
    width = model.width
    if arm == "cache":
        cache.tune(lam=chosen.cache[1], theta=options.thetas[chosen.cache_theta] / width)
        return [cache]
    if arm == "knn":
        knn.tune(lam=chosen.knn.lam, temperature=chosen.knn.temperature)
        return [knn]
    of_knn, of_cache = _lams(chosen.both)
    knn.tune(lam=of_knn, temperature=chosen.knn.temperature)
    cache.tune(lam=of_cache, theta=options.thetas[chosen.both_theta] / width)
    return [knn, cache]


def _lams(weights: list[float]) -> tuple[float, float]:
    """Weights of model, neighbours and cache -> lam of the neighbours, and lam of the cache, which comes last."""
    of_model, of_knn, of_cache = weights
    return of_knn / max(of_knn + of_model, 1e-12), of_cache


def _facts(model: MemoryLM, some: list[Batch], nats: np.ndarray) -> dict[str, Any]:
    """Parameters, bytes and time; and that the readers agree with what was computed from the targets alone."""
    by_readers = read(model, some).nats
    off = float(np.abs(by_readers - nats[: len(by_readers)]).max())
    if off > 1e-3:
        raise RuntimeError(f"the readers' nats differ by {off:.3g} from those of the mixture")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_bytes": sum(memory_bytes(reader) for reader in model.readers),
        "seconds_per_token": seconds_per_token(model, some),
        "largest_disagreement": off,
    }


def memory_bytes(reader: Reader) -> int:
    """Of the buffers of one stream: vectors and payload."""
    return sum(buffer.numel() * buffer.element_size() for buffer in reader.bank.memories[0].buffers())


@torch.no_grad()
def recall(reader: KNNReader, texts: Texts, model: MemoryLM, options: Options) -> dict[str, float]:
    """Share of the exact k nearest that the index finds, and of the 10 nearest; CPU seconds per query of both."""
    memory = reader.bank.shared
    some = list(blocks(texts.val, model.max_length or 128))[: -(-RECALL_QUERIES // (model.max_length or 128))]
    states = torch.cat([model.backbone.hidden(model.backbone.embed(b.input_ids)).last[0] for b in some])
    states = states[:RECALL_QUERIES]
    start = time.process_time()
    found, _ = memory.search(states, options.k)
    middle = time.process_time()
    vectors, ids = memory.get_all_embeddings(), memory.ids()
    begin = time.process_time()
    rows = nearest(states, vectors, k=min(options.k, len(ids)), metric=memory.metric)[1]
    end = time.process_time()
    exact = ids[rows]
    ten = exact[:, :10]
    return {
        "recall_k": _share(exact, found),
        "recall_10": _share(ten, found[:, : ten.shape[1]]),
        "search_seconds": (middle - start) / len(states),
        "exact_seconds": (end - begin) / len(states),
        "entries": len(ids),
    }


def _share(wanted: Tensor, found: Tensor) -> float:
    return float(np.mean([torch.isin(w, f).double().mean().item() for w, f in zip(wanted, found, strict=True)]))


def _of_size(
    plain: MemoryLM,
    texts: Texts,
    tuning: list[Batch],
    test: list[Batch],
    size: int,
    entries: MemoryUpdate,
    options: Options,
    *,
    seed: int,
) -> dict[str, Any]:
    """Bits per byte of kNN with some of the entries, drawn at random, and without, on some of the test's blocks."""
    drawn = np.random.default_rng(seed).permutation(len(entries.rows))[:size]
    chosen = torch.from_numpy(drawn)
    part = replace(entries, rows=entries.rows[chosen], entries=entries.entries[chosen])
    model = with_readers(plain, options, part)
    knn = _tune(look(model, tuning[::2], options), options, model).knn
    looked = look(model, test[:: options.curve_every], options)
    mixed = (1 - knn.lam) * looked.model + knn.lam * looked.knn(knn.temperature)
    n_bytes = looked.scores.n_bytes(texts.test, texts.token_bytes)
    return {
        "entries": len(drawn),
        "bpb": bits_per_byte(-mixed.log().numpy(), n_bytes),
        "plain_bpb": looked.scores.bits_per_byte(texts.test, texts.token_bytes),
        "lam": knn.lam,
    }
