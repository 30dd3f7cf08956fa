"""Samples of several sources, as often as their weights say."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.data.joined_tokens import JoinedTokens
from lightning_app.data.windows import TokenDataset


class Mixture(TokenDataset):
    """Samples of several sources, spread evenly over an epoch; texts, pairs and conversations may be mixed.

    Without weights an epoch has each sample of each source once. With weights it has as many tokens as all sources
    together, of each source its share: a source with less is repeated, in another order each time; one with more
    goes on in the next epoch. Which samples an epoch has follows from the seed and its number alone.

    Args:
        parts: the samples of each source.
        labels: what logs call each.
        weights: shares of an epoch's tokens, of any sum; None: see above.
        shuffle: repeat a source in another order each time.
    """

    def __init__(
        self,
        parts: Sequence[TokenDataset],
        labels: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        shuffle: bool = False,
    ) -> None:
        super().__init__(JoinedTokens([part.tokens for part in parts]), parts[0].block_size, None)
        self.parts, self.labels, self.weights, self.shuffle = list(parts), list(labels), weights, shuffle
        self.counts = self._counts()
        self.truncated = sum(part.truncated for part in parts)
        self._part = _spread(self.counts) if weights else np.repeat(np.arange(len(parts)), self.counts)
        self._within = np.empty(len(self._part), dtype=np.int64)  # the number of each among those of its source
        for i, count in enumerate(self.counts):
            self._within[self._part == i] = np.arange(count)
        self._items = [np.arange(count) for count in self.counts]
        self.set_epoch(0, 0)

    def _counts(self) -> list[int]:
        """Samples of each source in an epoch."""
        if self.weights is None:
            return [len(part) for part in self.parts]
        lengths = [part.mean_length for part in self.parts]
        tokens = sum(length * len(part) for length, part in zip(lengths, self.parts, strict=True))
        shares = [weight / sum(self.weights) for weight in self.weights]
        return [max(1, round(tokens * share / length)) for share, length in zip(shares, lengths, strict=True)]

    def __len__(self) -> int:
        return len(self._part)

    @property
    def mean_length(self) -> float:
        return float(np.average([part.mean_length for part in self.parts], weights=self.counts))

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Take the samples of an epoch, a pure function of both numbers."""
        for part in self.parts:
            part.set_epoch(epoch, seed)
        if self.weights is not None:
            self._items = [self._drawn(i, epoch, seed) for i in range(len(self.parts))]

    def _drawn(self, i: int, epoch: int, seed: int) -> np.ndarray:
        """(counts[i],) samples of a source: those that follow on the last epoch's."""
        size, count = len(self.parts[i]), self.counts[i]
        turns, places = np.divmod(np.arange(epoch * count, (epoch + 1) * count), size)
        if not self.shuffle:
            return places
        found = np.empty(count, dtype=np.int64)
        for turn in range(int(turns[0]), int(turns[-1]) + 1):
            order = np.random.default_rng((seed, i, turn)).permutation(size)
            found[turns == turn] = order[places[turns == turn]]
        return found

    def __getitems__(self, indices: list[int]) -> Batch:
        chosen = self._part[indices]
        order = np.argsort(chosen, kind="stable")
        batches = [self._of(i, self._within[indices][chosen == i]) for i in np.unique(chosen)]
        back = torch.from_numpy(np.argsort(order))
        columns = {name: torch.cat([vars(batch)[name] for batch in batches])[back] for name in vars(batches[0])}
        return Batch(**columns)

    def _of(self, i: int, within: np.ndarray) -> Batch:
        """Samples of one source, with its documents' numbers among those of all."""
        batch = self.parts[i].__getitems__(self._items[i][within].tolist())
        first = int(self._document_ends[i - 1]) if i else 0
        documents = torch.where(batch.document_ids < 0, batch.document_ids, batch.document_ids + first)
        return Batch(**{**vars(batch), "document_ids": documents})

    @property
    def _document_ends(self) -> np.ndarray:
        assert isinstance(self.tokens, JoinedTokens)
        return self.tokens.document_ends

    def part_of(self, document_ids: Tensor) -> Tensor:
        """The number of the source of each document (any shape, 0 or more)."""
        ends = torch.from_numpy(self._document_ends).to(document_ids.device)
        return torch.bucketize(document_ids.contiguous(), ends, right=True)


def _spread(counts: Sequence[int]) -> np.ndarray:
    """(sum of counts,) numbers of sources, each spread evenly."""
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    numbers = np.repeat(np.arange(len(counts)), counts)
    return numbers[np.argsort(places, kind="stable")]
