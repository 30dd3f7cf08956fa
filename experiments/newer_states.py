"""What a model makes of each document, computed once and kept: its states, and its nats of every token.

Shapes: N scored tokens of all documents, n of one, T positions of a block, D width.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.io import replacing
from lightning_app.models.backbone import Backbone
from lightning_app.models.losses import IGNORE, token_nll

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Read:
    """Documents as a model reads them, each by itself in windows of `block` tokens that do not overlap.

    Attributes:
        states: (N, D) last ones, from which each token was predicted.
        nats: (N,) float64 of each token.
        entropies: (N,) nats of the model's prediction.
        targets: (N,) the tokens.
        positions: (N,) of the token before each within its document.
        ends: where each document ends.
        seconds: CPU time of all.
    """

    states: Tensor
    nats: Tensor
    entropies: Tensor
    targets: Tensor
    positions: Tensor
    ends: list[int]
    seconds: float

    @property
    def p(self) -> Tensor:
        """(N,) the model's probability of each token."""
        return (-self.nats).exp()

    def of(self, document: int) -> slice:
        return slice(self.ends[document - 1] if document else 0, self.ends[document])

    @property
    def documents(self) -> Tensor:
        """(N,) number of each token's document."""
        return torch.arange(len(self.ends)).repeat_interleave(torch.tensor([0, *self.ends]).diff())


def digest_of(model: str) -> str:
    """Of the weights in a directory: what is kept is theirs."""
    digest = hashlib.sha256()
    for path in sorted(Path(model).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def kept(path: Path, make: Callable[[], Columns]) -> Columns:
    """From the file if it is there, else made and kept."""
    if path.exists():
        return dict(torch.load(path, weights_only=True))
    columns = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(columns, file)
    print(f"{path.parent.name}/{path.stem}: kept", flush=True)
    return columns


def read(tokens: TokenArray, backbone: Callable[[], Backbone], *, block: int, folder: Path) -> Read:
    """All documents; `folder` is for a model and a block, and a document's file there named by its tokens."""
    found = []
    for windows in by_document(tokens, block=block):
        key = int(windows[0].document_keys[0, 0])
        found.append(kept(folder / f"{key:016x}.pt", partial(_made, backbone, windows)))
    columns = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    ends = np.cumsum([len(one["nats"]) for one in found]).tolist()
    return Read(**columns | {"seconds": float(columns["seconds"].sum())}, ends=ends)  # type: ignore[arg-type]


def by_document(tokens: TokenArray, *, block: int) -> Iterator[list[Batch]]:
    """Windows (1, T) of each document, T at most `block`: padding is cut off."""
    windows = TokenWindows(tokens, min(block, tokens.n_tokens - 1), respect_documents=True)
    batches = (_real(windows.__getitems__([i])) for i in range(len(windows)))
    for _, some in groupby(batches, key=lambda batch: int(batch.document_ids[0, 0])):
        yield list(some)


def _real(batch: Batch) -> Batch:
    length = int(batch.attention_mask.sum())
    return batch.each(lambda column: column[:, :length])


def _made(backbone: Callable[[], Backbone], windows: Sequence[Batch]) -> Columns:
    model, start = backbone(), time.process_time()
    parts = [_of_window(model, window) for window in windows]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return columns | {"seconds": torch.tensor([time.process_time() - start])}


@torch.no_grad()
def _of_window(backbone: Backbone, batch: Batch) -> Columns:
    scored = batch.targets[0] != IGNORE
    states = backbone.hidden(backbone.embed(batch.input_ids)).last[:, scored]
    logits, targets = backbone.logits(states), batch.targets[:, scored]
    entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
    return {
        "states": states[0].float(),
        "nats": token_nll(logits, targets)[0].double(),
        "entropies": entropies[0],
        "targets": targets[0],
        "positions": batch.positions[0, scored],
    }
