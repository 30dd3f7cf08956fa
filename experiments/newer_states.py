"""What a model makes of a text, computed once for all arms: its states, and its nats of every token.

Shapes: N scored tokens, T positions of a block, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.io import replacing
from lightning_app.memory.readers.base import TokenContext
from lightning_app.models.backbone import Backbone
from lightning_app.models.losses import IGNORE, token_nll

CHUNK = 256  # tokens that are searched for at once


@dataclass(frozen=True)
class Read:
    """A text as a model reads it.

    Attributes:
        states: (N, D) last ones, from which each token was predicted; (0, D) where they are not kept.
        nats: (N,) float64 of each token.
        targets: (N,) the tokens.
        ids: (N,) the tokens before them.
        documents: (N,) index of each one's document.
        keys: (N,) key of it.
        positions: (N,) of `ids` within it.
        seconds: CPU time.
    """

    states: Tensor
    nats: Tensor
    targets: Tensor
    ids: Tensor
    documents: Tensor
    keys: Tensor
    positions: Tensor
    seconds: Tensor

    @property
    def width(self) -> int:
        return self.states.shape[1]

    @property
    def p(self) -> Tensor:
        """(N,) the model's probability of each token."""
        return (-self.nats).exp()

    def contexts(self) -> Iterator[tuple[slice, TokenContext]]:
        """The text in chunks (1, T), each token new."""
        for start in range(0, len(self.nats), CHUNK):
            at = slice(start, min(start + CHUNK, len(self.nats)))
            yield (
                at,
                TokenContext.of(
                    ids=self.ids[None, at],
                    next_ids=self.targets[None, at],
                    documents=self.keys[None, at],
                    positions=self.positions[None, at],
                    new=torch.ones(1, at.stop - at.start, dtype=torch.bool),
                    rows=torch.zeros(1, dtype=torch.int64),
                    segments=torch.zeros(at.stop - at.start, dtype=torch.int64),
                ),
            )


def read_once(
    path: Path,
    backbone: Callable[[], Backbone],
    tokens: TokenArray,
    *,
    block: int,
    by_document: bool,
    keep_states: bool = True,
) -> Read:
    """From the file if it is there. Windows of `block` tokens do not overlap, as in `validate`."""
    if path.exists():
        return Read(**torch.load(path, weights_only=True))
    windows = windows_of(tokens, block=block, by_document=by_document)
    start, parts = time.process_time(), []
    for i, window in enumerate(windows):
        parts.append(_of_window(backbone(), window, keep_states=keep_states))
        if i % 50 == 0:
            print(f"{path.stem}: window {i + 1} of {len(windows)}", flush=True)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    found = Read(*columns, seconds=torch.tensor(time.process_time() - start))
    with replacing(path) as file:
        torch.save({one.name: getattr(found, one.name) for one in fields(found)}, file)
    return found


def windows_of(tokens: TokenArray, *, block: int, by_document: bool) -> list[Batch]:
    """A text (1, T) by (1, T), T at most `block`: padding is cut off."""
    windows = TokenWindows(tokens, min(block, tokens.n_tokens - 1), respect_documents=by_document)
    return [_real(windows.__getitems__([i])) for i in range(len(windows))]


def _real(batch: Batch) -> Batch:
    length = int(batch.attention_mask.sum())
    return batch.each(lambda column: column[:, :length])


@torch.no_grad()
def _of_window(backbone: Backbone, batch: Batch, *, keep_states: bool) -> tuple[Tensor, ...]:
    """All columns of `Read` but the time."""
    scored = batch.targets[0] != IGNORE
    states = backbone.hidden(backbone.embed(batch.input_ids)).last[:, scored]
    nats = token_nll(backbone.logits(states), batch.targets[:, scored])[0].double()
    others = (batch.targets, batch.input_ids, batch.document_ids, batch.document_keys, batch.positions)
    kept = states[0].float() if keep_states else states[0, :0].float()
    return (kept, nats, *(column[0, scored] for column in others))
