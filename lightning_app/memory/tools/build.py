"""Texts into a kNN memory (Khandelwal et al. 2020, arXiv:1911.00172), and the choice of its weight and temperature.

Shapes: B batch, T positions, D width, N tokens, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document
from lightning_app.data.sources import Corpus, Split, Splits, as_options, as_sources
from lightning_app.data.token_cache import TokenArray, prepare_tokens
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.data.windows import PairSamples, TokenDataset, TokenWindows
from lightning_app.errors import InputError
from lightning_app.memory.extension import Memory
from lightning_app.memory.knn import Interpolation, tuned_interpolation
from lightning_app.memory.model import MemoryLM, MemoryStates
from lightning_app.memory.readers import GatedMixture, KNNReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.slots import Entries
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.pulse import counted

BATCH = 16  # windows
TUNING_TOKENS = 8192  # at most, out of windows that lie evenly in the text
SCALES = tuple(2.0 ** (i / 2) for i in range(-12, 5))  # temperatures tried, times the mean distance


@dataclass(frozen=True)
class Text:
    """Tokens and how they are cut: every document by itself, so that its entries depend on nothing but it."""

    tokens: TokenArray
    dataset: TokenDataset

    @classmethod
    def of(
        cls, documents: Iterable[Document], tokenizer: Tokenizer, cache_dir: str, *, block_size: int, stride: int | None
    ) -> Text:
        """Windows of `block_size` that start `stride` tokens apart, half of the block unless given."""
        tokens = prepare_tokens(documents, tokenizer, cache_dir)
        if tokens.prompt_lengths is not None:
            return cls(tokens, PairSamples(tokens, block_size))
        length = min(block_size, tokens.n_tokens - 1)
        stride = max(1, block_size // 2) if stride is None else stride
        if not 1 <= stride <= block_size:
            raise InputError(f"stride is {stride}; it must lie between 1 and the block of {block_size} tokens")
        return cls(tokens, TokenWindows(tokens, length, stride=min(stride, length), respect_documents=True))

    def n_batches(self, most: int | None = None, windows: int | None = None) -> int:
        """How many batches all windows make, or so many of them."""
        return -(-(len(self.dataset) if windows is None else windows) // min(BATCH, most or BATCH))

    def batches(self, numbers: Sequence[int] | None = None, *, most: int | None = None) -> Iterator[Batch]:
        """All windows, or those of some numbers, at most `most` at once."""
        numbers, rows = range(len(self.dataset)) if numbers is None else numbers, min(BATCH, most or BATCH)
        for start in range(0, len(numbers), rows):
            yield self.dataset.__getitems__(list(numbers[start : start + rows]))

    def spans(self, batch: Batch, chosen: Tensor, *, length: int) -> Tensor:
        """(N, length) the last tokens of the document up to each of N chosen positions, padded with -1 on the left."""
        starts = self.tokens.offsets[batch.document_ids[chosen].numpy()][:, None]
        places = starts + batch.positions[chosen].numpy()[:, None] + np.arange(1 - length, 1)
        return torch.from_numpy(np.where(places < starts, -1, self.tokens.ids[places.clip(min=0)].astype(np.int64)))

    def keys(self) -> list[int]:
        """Content key of each document."""
        return [int(key) for key in self.tokens.keys_of(np.arange(self.tokens.n_documents))]


def documents_at(path: str, config: dict[str, Any]) -> Iterable[Document]:
    """The documents of a path, cleaned as the run cleaned its own."""
    return Corpus(path, clean=bool((config.get("data") or {}).get("clean", True)))


def documents_of_run(config: dict[str, Any], split: str) -> Iterable[Document] | None:
    """The documents that the run trained or validated on; None where its config does not say."""
    data = config.get("data") or {}
    given = {name: data[name] for name in ("train", "val") if data.get(name)}
    sources = {name: as_sources(value) for name, value in given.items()}
    dealt = as_options(Split, data["split"]) if data.get("split") else None
    splits = Splits(sources, dealt, clean=data.get("clean", True)) if sources else None
    if splits is None or splits.origin(split) is None:
        return None
    seeds = (data.get("seed"), config.get("seed_everything"), 0)
    return splits.documents(split, seed=next(int(seed) for seed in seeds if seed is not None))


@dataclass(frozen=True)
class Filled:
    """What `fill` wrote: documents and entries, and names of the documents that were there already."""

    documents: int
    entries: int
    skipped: list[str]


def wanted(text: Text, held: Iterable[int]) -> tuple[list[int], list[str]]:
    """Numbers of the documents that are not held yet, each content once, and names of the others."""
    seen, numbers, skipped = set(held), [], []
    for i, key in enumerate(text.keys()):
        if key in seen:
            skipped.append(text.tokens.names[i])
        else:
            numbers.append(i)
            seen.add(key)
    return numbers, skipped


def count_entries(text: Text, numbers: Sequence[int]) -> int:
    """The number of entries that these documents make."""
    chosen = torch.tensor(numbers, dtype=torch.int64)
    return sum(int(_scored(batch, chosen).sum()) for batch in text.batches())


def _scored(batch: Batch, numbers: Tensor) -> Tensor:
    """(B, T) bool: what no other window has predicted, of the documents with these numbers."""
    return (batch.targets != IGNORE) & torch.isin(batch.document_ids, numbers)


@torch.no_grad()
def fill(of: Memory, knn: KNNReader, text: Text, numbers: Sequence[int], *, skipped: list[str]) -> Filled:
    """Store the state at each token of these documents, with the token after it."""
    memory, chosen, entries = knn.bank.shared, torch.tensor(numbers, dtype=torch.int64), 0
    batches = counted(text.batches(most=of.lm.most_rows), total=text.n_batches(of.lm.most_rows), what="storing")
    for batch in batches:
        scored = _scored(batch, chosen)
        if not scored.any():
            continue
        states = _kept(of, knn, run_without(of, knn, batch)[1])[:, : scored.shape[1]].float()
        spans = text.spans(batch, scored, length=memory.span_length)
        tokens, documents, positions = (x[scored] for x in (batch.targets, batch.document_keys, batch.positions))
        payload = Entries(tokens, documents, positions, spans)
        entries += len(memory.add(states[scored.to(states.device)], payload))
    keys = text.keys()
    of.documents |= {keys[i]: text.tokens.names[i] for i in numbers}
    return Filled(len(numbers), entries, skipped)


def _kept(of: Memory, knn: KNNReader, found: MemoryStates) -> Tensor:
    layer = knn.layer(len(of.lm.blocks))
    return found.states.last if layer is None else found.states.layers[layer]


def run_without(of: Memory, knn: KNNReader, batch: Batch) -> tuple[TokenContext, MemoryStates]:
    """States and logits as they are before the kNN memory changes them."""
    model = MemoryLM(of.lm.backbone, [], of.lm.segment_length, of.lm.isolate_segments)
    model.readers = cast(
        Any,
        nn.ModuleList(reader for reader in of.lm.readers if reader is not knn and not isinstance(reader, GatedMixture)),
    )
    batch = batch.to(of.device).padded(model.segment)
    context = of.lm.context(batch)
    layer = knn.layer(len(model.blocks))
    return context, model.run(batch.input_ids, context, layers=() if layer is None else [layer])


@dataclass(frozen=True)
class Tuned:
    """What was chosen, on how many tokens, and the model's nats per token on them without the memory."""

    chosen: Interpolation
    tokens: int
    nats_without: float


@torch.no_grad()
def tune(of: Memory, knn: KNNReader, text: Text) -> Tuned:
    """Choose weight and temperature on a text, and set them."""
    numbers, most = _spread(text), of.lm.most_rows
    batches = counted(text.batches(numbers, most=most), total=text.n_batches(most, len(numbers)), what="tuning")
    parts = [_looked_up(of, knn, batch) for batch in batches]
    p_model, distances, match = (torch.cat(columns) for columns in zip(*parts, strict=True))
    finite = distances[distances.isfinite()]
    if not len(finite):
        raise InputError("no neighbour was found for any token of the text to tune on: the memory is empty")
    scale = max(float(finite.mean()), 1e-6)
    chosen = tuned_interpolation(p_model, distances, match, temperatures=[scale * x for x in SCALES])
    knn.tune(lam=chosen.lam, temperature=chosen.temperature)
    return Tuned(chosen, len(p_model), float(-p_model.double().log().mean()))


def _spread(text: Text) -> list[int]:
    """Numbers of windows that lie evenly in the text, with about `TUNING_TOKENS` tokens to predict."""
    windows = len(text.dataset)
    per_window = max(1, text.tokens.n_tokens // windows)
    return np.unique(
        np.linspace(0, windows - 1, max(1, min(windows, TUNING_TOKENS // per_window))).astype(int)
    ).tolist()


def _looked_up(of: Memory, knn: KNNReader, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """p of the target (N,), distances and whether they have the target (N, K), of a batch's new tokens."""
    context, found = run_without(of, knn, batch)
    real, targets = context.new, context.entries.tokens
    p_model = (-token_nll(found.logits.float(), targets.where(real, IGNORE))[real]).exp()
    near = knn.neighbours(found.states.last.float(), context)
    return p_model, near.distances[real], (near.entries.tokens == targets[..., None])[real]
