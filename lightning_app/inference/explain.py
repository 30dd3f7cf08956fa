"""What a model does with a text: what it reads from its memory, its categories, its heads, and what surprises it.

All of it is of one forward, which changes nothing. Shapes: T tokens looked at, C candidates of a reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_app.inference.memory_look import UNKNOWN, Neighbour, neighbours, shown
from lightning_app.models.heads import units_made
from lightning_app.models.heads.attention_heads import innermost
from lightning_app.models.memory_lm import MemoryLM
from lightning_app.models.readers.base import OWN, SESSION, Reader, Reads
from lightning_app.models.rehearsal import evaluated
from lightning_app.modules.art_gpt2 import ARTRegularizer
from lightning_app.modules.base import Batch, LanguageModule, Outputs
from lightning_app.modules.varda_gpt import MemoryOutputs, VardaGPT
from lightning_app.ops.losses import IGNORE, token_nll
from lightning_app.text.tokenizer import Tokenizer

LONGEST = 1024  # tokens, of a model without a limit of its own
POSITIONS, ENTRIES = 32, 4
SPAN = 32  # tokens that show a place of the text itself


@torch.inference_mode()
def explain(
    module: LanguageModule, tokenizer: Tokenizer, text: str, *, positions: int = POSITIONS, entries: int = ENTRIES
) -> dict[str, Any]:
    """What the model does with the end of a text, in plain types. Changes no state.

    Args:
        text: of which the last tokens count, as many as the model holds; an empty one is a document's beginning.
        positions: the last of them, for which reads are listed.
        entries: of each position and reader, those with the highest weights.

    Returns:
        tokens: the T tokens that were looked at, as text: "" for one in the middle of a character.
        surprise: nats of each token given those before it; None of the first.
        memory: of a model with readers, see `_memory`.
        categories: of one with ARTRegularizers, see `_category`.
        heads: of one that was pruned, see `_heads`.
    """
    ids = context_of(module, tokenizer, text)
    batch = _batch(ids, length=_padded(module, len(ids)), device=module.device)
    with evaluated(module):
        outputs = module.outputs(batch)
        found = {"tokens": pieces(tokenizer, ids), "surprise": _surprise(outputs, len(ids))}
        found |= {"memory": _memory(module, outputs, tokenizer, ids, positions, entries)} if _reads(outputs) else {}
        arts = [one for one in module.regularizers if isinstance(one, ARTRegularizer)]
        found |= {"categories": [_category(art, outputs, tokenizer) for art in arts]} if arts else {}
    return found | ({"heads": _heads(module)} if units_made(module.backbone) else {})


# The text


def context_of(module: LanguageModule, tokenizer: Tokenizer, text: str) -> list[int]:
    """The last ids of a text that fit a block of the model, from the start of a character on; at least one."""
    ids = tokenizer.encode(text) or [tokenizer.eot]
    segment = module.backbone.context_length if isinstance(module.backbone, MemoryLM) else None
    longest = innermost(module.backbone).max_length or LONGEST
    kept = ids[-(longest if segment is None else longest // segment * segment) :]
    cut = len(kept) < len(ids)
    inside = next((i for i, one in enumerate(kept) if not cut or _begins_a_character(tokenizer, one)), 0)
    return kept[inside:]


def _begins_a_character(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.decode_bytes([token])[0] & 0b1100_0000 != 0b1000_0000


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token completes: joined they are the text of all."""
    decoder = tokenizer.stream_decoder()
    each = [decoder(token) for token in ids]
    return [*each[:-1], each[-1] + decoder.flush()]


def _padded(module: LanguageModule, length: int) -> int:
    """Models with isolated segments take whole ones alone."""
    segment = module.backbone.context_length if isinstance(module.backbone, MemoryLM) else None
    return length if segment is None else -(-length // segment) * segment


def _batch(ids: Sequence[int], *, length: int, device: torch.device) -> Batch:
    """One row, padded on the right, of a document that nobody has stored."""
    row, missing = torch.tensor([ids], device=device), (0, length - len(ids))
    places = torch.arange(len(ids), device=device)[None]
    return {
        "input_ids": pad(row, missing),
        "targets": pad(row[:, 1:], (0, 1 + missing[1]), value=IGNORE),
        "attention_mask": pad(torch.ones_like(row, dtype=torch.bool), missing),
        "document_ids": pad(torch.zeros_like(row), missing, value=-1),
        "document_keys": pad(torch.full_like(row, SESSION), missing, value=-1),
        "positions": pad(places, missing, value=-1),
    }


def _surprise(outputs: Outputs, n: int) -> list[float | None]:
    return [None, *token_nll(outputs.logits, outputs.targets)[0, : n - 1].float().tolist()]


# The memory


def _reads(outputs: Outputs) -> bool:
    return isinstance(outputs, MemoryOutputs) and len(outputs.found.readings) > 0


@dataclass(frozen=True)
class _Text:
    """The text that is looked at, and who can read it: what entries are told apart and shown by."""

    ids: Sequence[int]
    tokenizer: Tokenizer
    names: dict[int, str]


def _memory(
    module: LanguageModule, outputs: Outputs, tokenizer: Tokenizer, ids: Sequence[int], positions: int, entries: int
) -> list[dict[str, Any]]:
    """Of each reader its name, the number of its entries, the metric, and what each of the last positions read.

    A read has its position, that position's token, `weight` (what all of its entries have together) and the entries
    with the highest weights: `id` (None: a place of this text, which the model would store), `text` (up to the entry;
    None: it was not stored), `next_token`, `document`, `position`, `weight`, and `distance` or `similarity`.
    """
    assert isinstance(module, VardaGPT)
    assert isinstance(outputs, MemoryOutputs)
    text, shown = _Text(ids, tokenizer, module.documents), range(max(0, len(ids) - positions), len(ids))
    tokens, found = pieces(tokenizer, ids), []
    for reader, reading in zip(module.backbone.readers, outputs.found.readings, strict=True):
        reads = None if reading.reads is None else reading.reads()
        each = [
            {"position": t, "token": tokens[t], **_read(reader, reads, t, text, at_most=entries)}
            for t in (shown if reads is not None else ())
        ]
        name, size = type(reader).__name__.removesuffix("Reader").lower(), reader.bank.size()
        found.append({"reader": name, "entries": size, "metric": reads and reads.metric, "reads": each})
    return found


def _read(reader: Reader, reads: Reads | None, position: int, text: _Text, *, at_most: int) -> dict[str, Any]:
    assert reads is not None
    weights_C, entries_C, distances_C = (x[0, position] for x in (reads.weights, reads.entries, reads.distances))
    weights_C = weights_C.where(entries_C != -1, 0.0)
    best = weights_C.topk(min(at_most, len(weights_C))).indices
    best = best[weights_C[best] > 0]
    listed = [
        {**_entry(reader, entry, distance, text), "weight": weight, **_nearness(distance, reads.metric)}
        for entry, distance, weight in zip(
            *(x[best].tolist() for x in (entries_C, distances_C, weights_C)), strict=True
        )
    ]
    return {"weight": float(weights_C.sum()), "entries": listed}


def _entry(reader: Reader, entry: int, distance: float, text: _Text) -> dict[str, Any]:
    if entry <= OWN:
        return _own(OWN - entry, text)
    ids = torch.tensor([entry])
    (known,) = neighbours(reader.bank.of(0), ids, torch.tensor([distance]), text.tokenizer, text.names)
    return _stored(known)


def _stored(known: Neighbour) -> dict[str, Any]:
    """Of the document its name alone: where it lies is nobody's business."""
    return {
        "id": known.id,
        "text": known.span or None,
        "next_token": known.next or None,
        "document": None if known.document == UNKNOWN else PurePath(known.document).name,
        "position": known.position if known.position >= 0 else None,
    }


def _own(position: int, text: _Text) -> dict[str, Any]:
    """A place of the text itself."""
    following = text.ids[position + 1] if position + 1 < len(text.ids) else -1
    span, after = shown(text.tokenizer, text.ids[max(0, position + 1 - SPAN) : position + 1], following)
    return {"id": None, "text": span, "next_token": after or None, "document": None, "position": position}


def _nearness(distance: float, metric: str) -> dict[str, float]:
    """Squared L2 is a distance, cosine and inner product are similarities."""
    if metric == "l2":
        return {"distance": distance}
    return {"similarity": 1 - distance if metric == "cosine" else -distance}


# Categories and heads


def _category(regularizer: ARTRegularizer, outputs: Outputs, tokenizer: Tokenizer) -> dict[str, Any]:
    """Name and layer of an ART network, the category that this text is in (where it is novel: is nearest to; None:
    there is none yet), similarity to it, vigilance (None: not known yet), and the category's size and typical texts."""
    art, said = regularizer.art, {name: x[0] for name, x in regularizer.describe(outputs).items()}
    category, name = int(said[f"{regularizer.name}_category"]), regularizer.name
    slots = (art.ids[: len(art)] == category).nonzero()[:, 0].tolist()
    return {
        "name": name,
        "layer": regularizer.layer,
        "categories": len(art),
        "category": category if slots else None,
        "similarity": float(said[f"{name}_similarity"]) if slots else None,
        "novel": bool(said[f"{name}_novel"]),
        "vigilance": art.vigilance if art.vigilance > -torch.inf else None,
        "inputs": int(art.counts[slots[0]]) if slots else 0,
        "texts": [tokenizer.decode(text) for slot in slots for text in art.typical(slot)],
    }


def _heads(module: LanguageModule) -> dict[str, Any]:
    """Which attention heads are alive and which masked (there, but multiplied by 0; the others were removed), by layer;
    of the feed-forward neurons how many."""
    made, found = units_made(module.backbone), dict[str, Any]()
    if heads := made.get("heads"):
        found |= {"attention": heads.mask.tolist(), "masked": _masked(heads.mask, heads.present).tolist()}
    if neurons := made.get("neurons"):
        layers, n = neurons.shape
        masked = _masked(neurons.mask, neurons.present)
        found["neurons"] = {"alive": neurons.mask.sum(1).tolist(), "masked": masked.sum(1).tolist(), "of": [n] * layers}
    return found


def _masked(alive: Tensor, present: Tensor) -> Tensor:
    return present & ~alive
