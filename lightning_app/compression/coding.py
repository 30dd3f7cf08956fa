"""Symbols through an arithmetic coder, with a model's probabilities: one function for both directions.

What is read was written with the same numbers only if they were computed in the same way: one token at a time, on one
thread of the same kind of CPU, by the same libraries. `archive.Setting` holds what must be equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_app.compression.coder import Decoder, Encoder, frequencies
from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.training.adapting import Adaptation
from lightning_app.training.module import LanguageModule

BYTES = 256
GAIN = 16  # what one more occurrence adds to a count
LEARNED = 64  # tokens between two steps of a model that adapts, or as many as it sees at once
MOST = 2**20  # a sum of counts beyond this is halved


class Channel(ABC):
    """Where symbols go to, or come from.

    Attributes:
        bits: of information in what went through, as the counts say.
    """

    bits: float = 0.0

    @abstractmethod
    def choose(self, counts: np.ndarray, symbol: int | None) -> int:
        """Pass one symbol through, which has `counts[symbol]` of their sum -> the symbol."""


class Writing(Channel):
    """Takes symbols that are known."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    def choose(self, counts: np.ndarray, symbol: int | None) -> int:
        assert symbol is not None
        start, size, total = int(counts[:symbol].sum()), int(counts[symbol]), int(counts.sum())
        self.encoder.put(start, size, total)
        self.bits -= float(np.log2(size / total))
        return symbol


class Reading(Channel):
    """Finds them."""

    def __init__(self, data: bytes):
        self.decoder = Decoder(data)

    def choose(self, counts: np.ndarray, symbol: int | None) -> int:
        ends = counts.cumsum()
        found = 0

        def find(number: int) -> tuple[int, int]:
            nonlocal found
            found = int(np.searchsorted(ends, number, side="right"))
            return int(ends[found] - counts[found]), int(counts[found])

        self.decoder.get(int(ends[-1]), find)
        return found


@dataclass
class Escapes:
    """Whether a byte follows instead of a token, and which: by how often each came so far.

    Attributes:
        kinds: (2, 2): after a token and after a byte, how often a token came, and how often a byte.
        bytes: (256,) how often each byte came.
        last: whether the last symbol was a byte.
    """

    kinds: np.ndarray = field(default_factory=lambda: np.array([[2**12, 1], [GAIN, GAIN]]))
    bytes: np.ndarray = field(default_factory=lambda: np.ones(BYTES, dtype=np.int64))
    last: int = 0

    def is_byte(self, channel: Channel, known: bool | None) -> bool:
        """Pass through whether a byte follows."""
        counts = self.kinds[self.last]
        self.last = channel.choose(counts, None if known is None else int(known))
        _count(counts, self.last)
        return bool(self.last)

    def byte(self, channel: Channel, known: int | None) -> int:
        """Pass through which."""
        byte = channel.choose(self.bytes, known)
        _count(self.bytes, byte)
        return byte


def _count(counts: np.ndarray, symbol: int) -> None:
    counts[symbol] += GAIN
    if counts.sum() > MOST:
        counts -= counts // 2


@dataclass
class Passed:
    """What went through.

    Attributes:
        symbols: see `symbols`.
        bits: of the tokens, by the model's own probabilities.
        escape_bits: of the rest.
    """

    symbols: list[int] = field(default_factory=list)
    bits: float = 0.0
    escape_bits: float = 0.0


class Text:
    """The tokens so far, and what comes next by a model that may adapt to them.

    Args:
        module: on the CPU, in eval mode.
        beginning: ids that stand before any text.
        adaptation: learns from each token once, every `LEARNED` of them; None: the model stays as it is.
    """

    def __init__(self, module: LanguageModule, beginning: Sequence[int], adaptation: Adaptation | None):
        self._module, self._adaptation, self._decoder = module, adaptation, module.batch_decoder()
        self._row = self._decoder.join(beginning, GenerationOptions())
        self._learned = len(beginning)
        self._every = min(LEARNED, module.backbone.max_length or LEARNED)

    def probabilities(self) -> np.ndarray:
        """(V,) of the next token."""
        return _probabilities(self._decoder.next_logits())

    def append(self, token: int) -> None:
        """Add the token that came next, and learn where it is time."""
        ids = self._row.ids
        ids.append(token)
        if self._adaptation is not None and len(ids) - self._learned == self._every:
            self._adaptation.learn(self._last(ids))
            self._learned = len(ids)
            self._decoder.leave(self._row)  # the cache is of the weights before
            self._row = self._decoder.join(ids, GenerationOptions())

    def _last(self, ids: Sequence[int]) -> Batch:
        """What was scored since the last step, behind what stands before it."""
        backbone = self._module.backbone
        length = min(len(ids) - 1, backbone.max_length or 2 * LEARNED)
        start = len(ids) - 1 - length
        positions = torch.arange(start, start + length)
        scored = positions >= self._learned - 1
        batch = Batch.of(torch.tensor([ids[start:]]), scored=scored[None], positions=positions[None])
        return batch.padded(backbone.segment)


def pass_through(
    module: LanguageModule,
    channel: Channel,
    beginning: Sequence[int],
    count: int,
    known: Sequence[int] | None = None,
    *,
    adaptation: Adaptation | None = None,
) -> Passed:
    """Pass `count` symbols through a channel, each with the probability that it has after all before it.

    Args:
        module: on the CPU, in eval mode.
        channel: to or from an archive.
        beginning: ids that stand before any text.
        known: the symbols; None: they are read.
        adaptation: learns from every `LEARNED` tokens once they have passed; None: the model stays as it is.
    """
    passed, escapes = Passed(), Escapes()
    text = Text(module, beginning, adaptation)

    def tokens() -> Iterator[Tensor]:
        for i in range(count):
            wanted = None if known is None else known[i]
            before = channel.bits
            if escapes.is_byte(channel, None if wanted is None else wanted < 0):
                symbol = -1 - escapes.byte(channel, None if wanted is None else -1 - wanted)
                passed.symbols.append(symbol)
                passed.escape_bits += channel.bits - before
                continue
            passed.escape_bits += channel.bits - before
            probabilities = text.probabilities()
            token = channel.choose(frequencies(probabilities), wanted)
            passed.bits -= float(np.log2(probabilities[token]))
            passed.symbols.append(token)
            text.append(token)
            yield torch.tensor([token])

    stream: Iterator[Tensor] = tokens()
    for extension in module.extensions:
        stream = extension.during_generation(stream, torch.tensor([list(beginning)]))
    for _ in stream:
        pass
    return passed


def _probabilities(logits: Tensor) -> np.ndarray:
    """(1, V) logits -> (V,) in float64."""
    probabilities: np.ndarray = logits[0].double().softmax(-1).numpy()
    if np.isnan(probabilities).any():
        raise InputError("the model's logits are not finite: it cannot compress")
    return probabilities
