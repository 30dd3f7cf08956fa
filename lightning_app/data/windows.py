"""Samples for a language model: windows of a token array, and prompt/target pairs.

Shapes: B samples, T = block_size.
"""

import logging
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch.utils.data import Dataset

from lightning_app.data.batch import Batch
from lightning_app.data.token_cache import TokenArray
from lightning_app.errors import InputError

log = logging.getLogger(__name__)


class TokenDataset(Dataset[Batch], ABC):
    """Fetches a whole batch by one indexing of the token array: 6 times as fast as sample by sample.

    Args:
        tokens: the token array.
        block_size: T, tokens per sample.
        max_samples: keep the first ones only.

    Raises:
        InputError: `block_size` or `max_samples` below 1.
    """

    truncated = 0  # samples that lost tokens because they are longer than T
    _starts: np.ndarray  # (n_samples,) first position of each, and the position behind the last token that it may have
    _ends: np.ndarray

    def __init__(self, tokens: TokenArray, block_size: int, max_samples: int | None) -> None:
        if block_size < 1 or (max_samples is not None and max_samples < 1):
            raise InputError(f"block_size is {block_size} and max_samples {max_samples}; both must be at least 1")
        self.tokens = tokens
        self.block_size = block_size

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def mean_length(self) -> float:
        """Tokens of a sample, padding left out."""
        return float(np.minimum(self._ends - self._starts, self.block_size).mean()) if len(self) else 0.0

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Take the samples of an epoch, where they depend on it."""

    @abstractmethod
    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these samples, already collated: a DataLoader's `collate_fn` is the identity."""

    def __getitem__(self, index: int) -> Batch:
        """One sample: (T,) tensors."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.__getitems__([index]).each(lambda rows: rows[0])

    def _batch(self, positions: np.ndarray, real: np.ndarray, scored: np.ndarray) -> Batch:
        """Gather tokens.

        Args:
            positions: (B, T + 1), 0 or more, one more than a sample for the last target; they may lie behind the
                array's end where neither `real` nor `scored`.
            real: (B, T) where `positions` holds a token of the sample, not padding.
            scored: (B, T) where the token at the next position is to be predicted.
        """
        inside = np.minimum(positions, self.tokens.n_tokens - 1)
        ids = torch.from_numpy(self.tokens.ids[inside].astype(np.int64))  # (B, T + 1)
        told = torch.from_numpy(scored)
        if self.tokens.bos not in (None, self.tokens.eot):  # given with every document, and predicted nowhere
            told &= ids[:, 1:] != self.tokens.bos
        documents = self.tokens.document_of(inside[:, :-1])
        return Batch.of(
            ids,
            real=torch.from_numpy(real),
            scored=told,
            documents=torch.from_numpy(documents),
            keys=torch.from_numpy(self.tokens.keys_of(documents)),
            positions=torch.from_numpy(inside[:, :-1] - self.tokens.offsets[documents]),
            eot=self.tokens.eot,
        )


class TokenWindows(TokenDataset):
    """Windows of `block_size` tokens, `stride` apart, that together predict every token but the first once.

    Window i of a segment of the array covers positions [i stride, i stride + T) of it. Only what no earlier window
    has predicted is scored: all targets of its first window, the last `stride` ones of the others (a sliding window
    gives them T - stride tokens of context at least). What does not fill the last window is padded.

    Args:
        tokens: the token array.
        block_size: T.
        stride: tokens between the starts of two windows; `block_size` unless given.
        max_samples: keep the first ones only, in document order.
        shift: let `set_epoch` move all windows by an offset in [0, T), so that an epoch cuts the text elsewhere.
            The array is then read as a circle: the tokens before the offset come last, behind the tail and a
            document's end, so none is lost (but one target, where windows fill the array exactly) and the length
            stays. The array's first token is never a target.
        respect_documents: every document is a segment of its own: windows begin at its first token and predict up
            to its end of text. Otherwise the whole array is one segment.

    Raises:
        InputError: fewer than T + 1 tokens, a stride outside of 1..T, or options that contradict each other.
    """

    def __init__(
        self,
        tokens: TokenArray,
        block_size: int,
        *,
        stride: int | None = None,
        max_samples: int | None = None,
        shift: bool = False,
        respect_documents: bool = False,
    ) -> None:
        super().__init__(tokens, block_size, max_samples)
        self.stride = block_size if stride is None else stride
        self.shift = shift
        self.offset = 0
        self._check(respect_documents)
        ends = tokens.offsets[1:] if respect_documents else tokens.offsets[-1:]
        self._starts, self._ends, self._is_first = self._windows(np.concatenate([[0], ends]), max_samples)

    def _check(self, respect_documents: bool) -> None:
        if not 1 <= self.stride <= self.block_size:
            raise InputError(f"stride is {self.stride}; set it to 1 up to block_size, which is {self.block_size}")
        if self.shift and (respect_documents or self.stride != self.block_size):
            raise InputError(
                f"shift moves windows off document starts and fixed strides; with shift: true leave out "
                f"respect_documents (is {respect_documents}) and stride (is {self.stride})"
            )
        if self.tokens.n_tokens < self.block_size + 1:
            raise InputError(
                f"the text has {self.tokens.n_tokens} tokens, but one window of block_size {self.block_size} needs "
                f"{self.block_size + 1}; give more text or a smaller block_size"
            )

    def _windows(self, bounds: np.ndarray, max_samples: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First position, end of the segment, and whether it is the segment's first, of each window."""
        predictions = np.diff(bounds) - 1
        rest = np.maximum(predictions - self.block_size, 0)
        counts = np.where(predictions > 0, 1 + -(-rest // self.stride), 0)  # an empty document has no window
        segment = np.repeat(np.arange(len(counts)), counts)[:max_samples]
        number = np.arange(len(segment)) - (np.cumsum(counts) - counts)[segment]
        starts, ends = bounds[segment] + number * self.stride, bounds[segment + 1]
        if max_samples is not None and len(
            starts
        ):  # no token behind the last window kept, wherever they are shifted to
            ends = np.minimum(ends, starts[-1] + self.block_size + 1)
        return starts, ends, number == 0

    def __len__(self) -> int:
        return len(self._starts)

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Draw the offset, a pure function of both numbers (seed 0 or more); nothing without `shift`."""
        if self.shift:
            self.offset = int(np.random.default_rng((seed, epoch)).integers(self.block_size))

    def __getitems__(self, indices: list[int]) -> Batch:
        first, end = self._starts[indices, None], self._ends[indices, None]  # (B, 1)
        columns = np.arange(self.block_size + 1)
        positions = first + columns  # (B, T + 1)
        real = positions[:, :-1] < end
        if self.offset:
            positions = (positions + self.offset) % end  # `shift` has one segment, which begins at 0
        new = self._is_first[indices, None] | (columns[:-1] >= self.block_size - self.stride)
        return self._batch(positions, real, real & new & (positions[:, :-1] != end - 1))


class PairSamples(TokenDataset):
    """One prompt/target pair per sample: prompt, target and end of text in one sequence, padded on the right.

    Prompt positions predict nothing but the last, which predicts the target's first token. A pair of more than
    T + 1 tokens loses the left end of its prompt, all but one token of it if it must, then the end of its target.
    Of a conversation the prompt is what stands before the assistant's first turn; of the rest, its turns are scored.
    A long one loses its end, and of the prompt only what its first turn needs.

    Attributes:
        truncated_prompts, truncated_targets: samples that lost tokens there.

    Args:
        tokens: a token array with prompt lengths.
        block_size: T.
        max_samples: keep the first ones only.

    Raises:
        InputError: the array has no prompts.
    """

    def __init__(self, tokens: TokenArray, block_size: int, max_samples: int | None = None) -> None:
        super().__init__(tokens, block_size, max_samples)
        if tokens.prompt_lengths is None:
            raise InputError("these documents have no prompts; give rows of {'prompt', 'target'} or of {'messages'}")
        starts, ends = tokens.offsets[:-1][:max_samples], tokens.offsets[1:][:max_samples]
        prompts = tokens.prompt_lengths[:max_samples]
        excess = np.maximum(self._lengths_to_keep(starts, ends, prompts) - (block_size + 1), 0)
        self._starts = starts + np.minimum(excess, np.maximum(prompts - 1, 0))
        self._targets = starts + prompts
        self._ends = np.minimum(ends, self._starts + block_size + 1)
        self.truncated_prompts = int((self._starts > starts).sum())
        self.truncated_targets = int((self._ends < ends).sum())
        self.truncated = int(((self._starts > starts) | (self._ends < ends)).sum())
        self._report()

    def _lengths_to_keep(self, starts: np.ndarray, ends: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Tokens (n,) up to the end of the first turn; of a short sample or a pair, all."""
        lengths, scored = ends - starts, self.tokens.scored
        if scored is not None:
            for i in np.flatnonzero(lengths > self.block_size + 1):
                rest = scored[starts[i] + prompts[i] : ends[i]]
                lengths[i] = prompts[i] + (len(rest) if rest.all() else rest.argmin())
        return lengths

    def _report(self) -> None:
        if self.truncated:
            log.warning(
                "%d of %d %s are longer than block_size %d: %d lost the start of the prompt, %d the target's end",
                *(self.truncated, len(self), "pairs" if self.tokens.scored is None else "conversations"),
                *(self.block_size, self.truncated_prompts, self.truncated_targets),
            )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitems__(self, indices: list[int]) -> Batch:
        positions = self._starts[indices, None] + np.arange(self.block_size + 1)  # (B, T + 1)
        real = positions < self._ends[indices, None]
        scored = real & (positions >= self._targets[indices, None])
        if self.tokens.scored is not None:
            scored &= self.tokens.scored[np.minimum(positions, self.tokens.n_tokens - 1)]
        return self._batch(positions, real[:, :-1], scored[:, 1:])
