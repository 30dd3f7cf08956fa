"""Autoregressive generation with any backbone: one text, or a batch that texts join and leave at any time.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone, Cache
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.sampling import penalise_repetition, sample

RECENT = 20  # tokens that `Backbone.next_logits` gets beside the states


def use_column_major_weights(backbone: Backbone) -> None:
    """Store the matrices with more rows than columns by columns, in place, on a CPU.

    With a cache a step of one row multiplies each matrix by one vector; along the longer side that reads memory up to
    2.8 times as fast (docs/benchmarks.md). The values stay. Not for a model that trains on: the optimizer's state has
    the old order.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            weight = module.weight.data
            module.weight.data = weight.t().contiguous().t() if weight.device.type == "cpu" else weight


def _context_start(start: int, length: int, max_length: int | None) -> int:
    """Where the visible context starts; a full one loses its older half, so that the cache pays again for a while."""
    if max_length is None or length - start <= max_length:
        return start
    return length - max(1, max_length // 2)


class Continuation:
    """A text that a `BatchDecoder` continues.

    Attributes:
        ids: the prompt and what was added.
        options: how it is continued.
        new: tokens added so far.
    """

    def __init__(self, ids: Sequence[int], options: GenerationOptions, *, max_length: int | None, device: torch.device):
        self.ids, self.options, self.new = list(ids), options, 0
        self.generator = torch.Generator(device).manual_seed(options.seed)
        self._start = max(0, len(self.ids) - max_length) if max_length else 0

    def moves(self, max_length: int | None) -> bool:
        """Whether the context is full, so that it starts elsewhere from now on."""
        before, self._start = self._start, _context_start(self._start, len(self.ids), max_length)
        return self._start != before

    @property
    def context(self) -> list[int]:
        """The tokens that the next one is predicted from."""
        return self.ids[self._start :]

    @property
    def kind(self) -> GenerationOptions:
        """The options but for what may differ between rows that are drawn together."""
        return replace(self.options, seed=0, max_new_tokens=1)


class BatchDecoder:
    """Continues several texts at once, a token of each per step; each gets the tokens that it would get alone.

    Texts may join and leave between steps. Rows are padded on the left. Who joins is computed apart, and its cache put
    beside the others'. All contexts are computed anew when one is full, when the padding has filled the model's
    length, and where a kind of cache cannot be put together.

    Args:
        backbone: in eval mode for deterministic results; moved and cast by the caller.
        device: where it is.
        vocab_size: ids from here on are spare and never sampled; None: all ids are real.
        use_cache: see `GenerationOptions`.
    """

    def __init__(
        self, backbone: Backbone, *, device: torch.device, vocab_size: int | None = None, use_cache: bool = True
    ):
        self.backbone, self.device, self.vocab_size, self.use_cache = backbone, device, vocab_size, use_cache
        self.texts: list[Continuation] = []
        self._rows: list[Continuation] = []  # of the cache, those included that have left
        self._cache: Cache | None = None
        self._mask: Tensor | None = None  # (B, P), over the P positions in the cache; None: no padding

    def join(self, ids: Sequence[int], options: GenerationOptions) -> Continuation:
        """Continue the text of `ids`, at least one token, from the next step on."""
        text = Continuation(ids, options, max_length=self.backbone.max_length, device=self.device)
        self.texts.append(text)
        return text

    def leave(self, text: Continuation) -> None:
        """Continue it no further."""
        self.texts.remove(text)

    def step(self) -> list[int]:
        """Add a token to each of `texts` -> the tokens."""
        return self._draw(self.next_logits())

    @torch.inference_mode()
    def next_logits(self) -> Tensor:
        """(B, V) behind each of the rows; whoever does not `step` puts the next token into the text's ids."""
        new = [text for text in self.texts if text not in self._rows]
        if self._fits() and self._drop_left(at_once=bool(new)):
            logits = self._go_on()
            logits = torch.cat([logits, self._go_on_with(new)]) if new else logits
        else:
            self._rows = list(self.texts)
            logits, self._cache, self._mask = self._begin(self._rows)
        return logits

    def _fits(self) -> bool:
        """Whether the cache can take another position of each of its rows."""
        limit = self.backbone.max_length
        moved = [text.moves(limit) for text in self.texts]  # each, whatever the others say
        return self._cache is not None and not any(moved) and (limit is None or self._cache.length < limit)

    def _drop_left(self, *, at_once: bool) -> bool:
        """Take the rows that have left out of the cache (half of them, if not at once); False where it cannot."""
        there = [i for i, row in enumerate(self._rows) if row in self.texts]
        if len(there) == len(self._rows) or not (at_once or 2 * len(there) <= len(self._rows)):
            return True
        assert self._cache is not None
        self._cache = self._cache.kept(there) if there else None
        self._mask = self._mask[there] if self._mask is not None else None
        self._rows = [self._rows[i] for i in there]
        return self._cache is not None

    def _begin(self, texts: Sequence[Continuation]) -> tuple[Tensor, Cache | None, Tensor | None]:
        """Compute whole contexts -> logits (B, V) behind them, cache, mask."""
        contexts = [text.context for text in texts]
        lengths = torch.tensor([len(context) for context in contexts], device=self.device)
        width = int(lengths.max())
        ids = torch.tensor([[0] * (width - len(c)) + c for c in contexts], device=self.device)
        padded = bool((lengths < width).any())
        mask = torch.arange(width, device=self.device) >= width - lengths[:, None] if padded else None
        cache = self.backbone.new_cache(len(ids)) if self.use_cache else None
        return self._logits(ids, mask, cache, texts), cache, mask

    def _go_on(self) -> Tensor:
        """Logits (B, V) behind one more token of each row in the cache."""
        ids = torch.tensor([row.ids[-1:] for row in self._rows], device=self.device)
        if self._mask is not None:
            self._mask = nn.functional.pad(self._mask, (0, 1), value=True)
        return self._logits(ids, self._mask, self._cache, self._rows)

    def _go_on_with(self, new: list[Continuation]) -> Tensor:
        """Logits behind the contexts of texts that join; their cache is put beside the others'."""
        logits, cache, mask = self._begin(new)
        assert self._cache is not None
        assert cache is not None
        widths = self._cache.length, cache.length
        masks = zip((self._mask, mask), (len(self._rows), len(new)), widths, strict=True)
        whole = [torch.ones(b, w, dtype=torch.bool, device=self.device) if m is None else m for m, b, w in masks]
        padded = [nn.functional.pad(m, (max(widths) - m.shape[1], 0), value=False) for m in whole]
        self._cache, self._mask = self._cache.joined(cache), torch.cat(padded)
        self._rows = self._rows + new
        return logits

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: Cache | None, texts: Sequence[Continuation]) -> Tensor:
        last = [[-1] * (RECENT - len(text.ids)) + text.ids[-RECENT:] for text in texts]
        recent = torch.tensor(last, device=self.device)
        return self.backbone.next_logits(ids, mask=mask, cache=cache, recent=recent)[:, : self.vocab_size]

    @torch.inference_mode()
    def _draw(self, logits: Tensor) -> list[int]:
        """One token for each of `texts` from the (B, V) logits of the rows; rows of one kind at once."""
        row_of = {id(row): i for i, row in enumerate(self._rows)}
        kinds: dict[GenerationOptions, list[Continuation]] = {}
        for text in self.texts:
            kinds.setdefault(text.kind, []).append(text)
        for options, texts in kinds.items():
            some = logits[[row_of[id(text)] for text in texts]]
            tokens = sample(
                self._penalised(some, texts, options.repetition_penalty),
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                min_p=options.min_p,
                generators=[text.generator for text in texts],
            )
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.ids.append(token)
                text.new += 1
        return [text.ids[-1] for text in self.texts]

    def _penalised(self, logits: Tensor, texts: Sequence[Continuation], penalty: float) -> Tensor:
        if penalty == 1:
            return logits
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, text in zip(seen, texts, strict=True):
            row[[i for i in set(text.ids) if i < len(row)]] = True
        return penalise_repetition(logits.float(), seen, penalty)


def generate(
    backbone: Backbone,
    ids: Tensor,
    options: GenerationOptions | None = None,
    *,
    vocab_size: int | None = None,
    eot: int | Collection[int] | None = None,
) -> Generator[Tensor, None, None]:
    """Yield the next token of each row, (B,), until `max_new_tokens` or until every row has ended.

    Args:
        backbone: see `BatchDecoder`.
        ids: (B, T) prompt, at least one token; only the last `max_length` are seen.
        options: see `GenerationOptions`.
        vocab_size: see `BatchDecoder`.
        eot: the end-of-text id, or all that end a text; a row that has reached one yields it ever after. None: rows
            never end.

    Raises:
        InputError: an empty prompt.
    """
    options = options or GenerationOptions()
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise InputError(f"the prompt has shape {tuple(ids.shape)}; it must be (rows, tokens) with at least one token")
    decoder = BatchDecoder(backbone, device=ids.device, vocab_size=vocab_size, use_cache=options.use_cache)
    texts = [decoder.join(row, replace(options, seed=options.seed + i)) for i, row in enumerate(ids.tolist())]
    ends = {eot} if isinstance(eot, int) else set(eot or ())
    for _ in range(options.max_new_tokens):
        decoder.step()
        yield torch.tensor([text.ids[-1] for text in texts], device=ids.device)
        for text in [text for text in decoder.texts if text.ids[-1] in ends]:
            decoder.leave(text)
        if not decoder.texts:
            return
