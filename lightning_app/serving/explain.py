"""What a model does with a text: what it reads from its memory, its categories, its heads, and what surprises it.

All of it is of one forward, which changes nothing. Shapes: T tokens looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.memory.extension import memory_of
from lightning_app.memory.model import MemoryLM, MemoryStates
from lightning_app.memory.readers.base import SESSION
from lightning_app.memory.tools.attribution import SeenText, reads_of
from lightning_app.models.extension import Outputs
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.models.modes import evaluated
from lightning_app.plasticity.kinds import cut_units
from lightning_app.training.module import Batch, LanguageModule

LONGEST = 1024  # tokens, of a model without a limit of its own
POSITIONS, ENTRIES = 32, 4
IMPOSSIBLE = 1000.0  # nats of what has no probability: JSON knows no infinity


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
        memory: of a model with readers, see `reads_of`.
        categories: of one with ARTRegularizers, see `_category`.
        heads: of one that was pruned, see `_heads`.
    """
    ids = _context(module, tokenizer, text)
    seen = SeenText(ids, _pieces(tokenizer, ids), tokenizer)
    length = -(-len(ids) // _segment(module)) * _segment(module)
    with evaluated(module), _without_sessions(module):
        outputs = module.outputs(_batch(ids, length=length, device=module.device))
        found: dict[str, Any] = {"tokens": seen.tokens, "surprise": _surprise(outputs, len(ids))}
        memory = memory_of(module)
        if memory is not None and isinstance(outputs.forward, MemoryStates) and memory.readers:
            found["memory"] = reads_of(memory, outputs.forward, seen, positions=positions, entries=entries)
    if arts := [one for one in module.extensions if isinstance(one, ARTRegularizer)]:
        found["categories"] = [_category(art, outputs, tokenizer) for art in arts]
    if cut_units(module.backbone):
        found["heads"] = _heads(module)
    return found


@contextmanager
def _without_sessions(module: LanguageModule) -> Iterator[None]:
    """What a text that is being generated has stored is nobody else's business."""
    with ExitStack() as stack:
        for reader in module.backbone.readers if isinstance(module.backbone, MemoryLM) else ():
            stack.enter_context(reader.bank.outside_evaluation())
        yield


# The text


def _segment(module: LanguageModule) -> int:
    """The model takes multiples of so many tokens."""
    return (module.backbone.context_length if isinstance(module.backbone, MemoryLM) else None) or 1


def _context(module: LanguageModule, tokenizer: Tokenizer, text: str) -> list[int]:
    """The last ids of a text that fit a block of the model, from the start of a character on; at least one."""
    ids = tokenizer.encode(text) or [tokenizer.eot]
    longest, segment = module.backbone.core.max_length or LONGEST, _segment(module)
    kept = ids[-(longest // segment * segment) :]
    if len(kept) == len(ids):
        return ids
    return kept[next((i for i, one in enumerate(kept) if _begins_a_character(tokenizer, one)), 0) :]


def _begins_a_character(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.decode_bytes([token])[0] & 0b1100_0000 != 0b1000_0000


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token completes: joined they are the text of all."""
    decoder = tokenizer.stream_decoder()
    each = [decoder(token) for token in ids]
    return [*each[:-1], each[-1] + decoder.flush()]


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
    nats = token_nll(outputs.logits, outputs.targets)[0, : n - 1].float()
    return [None, *nats.clamp_max(IMPOSSIBLE).tolist()]


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
    made, found = {units.kind: units for units in cut_units(module.backbone)}, dict[str, Any]()
    if heads := made.get("heads"):
        found |= {"attention": heads.mask.tolist(), "masked": _masked(heads.mask, heads.present).tolist()}
    if neurons := made.get("neurons"):
        layers, n = neurons.shape
        masked = _masked(neurons.mask, neurons.present)
        found["neurons"] = {"alive": neurons.mask.sum(1).tolist(), "masked": masked.sum(1).tolist(), "of": [n] * layers}
    return found


def _masked(alive: Tensor, present: Tensor) -> Tensor:
    return present & ~alive
