"""What a model does with a text: what it reads from its memory, its categories, its heads, and what surprises it.

All of it is of one forward, which changes nothing. Shapes: T tokens looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_app.data.batch import Batch
from lightning_app.data.seen_text import SeenText
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.models.extension import Outputs
from lightning_app.models.losses import token_nll
from lightning_app.models.modes import evaluated
from lightning_app.plugins import here, load
from lightning_app.training.module import LanguageModule

LONGEST = 1024  # tokens, of a model without a limit of its own
POSITIONS, ENTRIES = 32, 4
ALTERNATIVES = 5
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
        likeliest: of each token the five likeliest in its place, [text, probability]; None of the first.
        What the ideas of the model add: `memory`, `categories`, `heads`; see their `explain`.
    """
    ids = _context(module, tokenizer, text)
    whole = len(ids) == len(tokenizer.prompt(text))
    seen = SeenText(ids, _pieces(tokenizer, ids, continues=not whole), tokenizer)
    batch = Batch.of_texts(torch.tensor([ids], device=module.device)).padded(module.backbone.segment)
    with evaluated(module), module.backbone.outside_session():
        outputs = module.outputs(batch)
        found: dict[str, Any] = {"tokens": seen.tokens, "surprise": _surprise(outputs, len(ids))}
        found["likeliest"] = _likeliest(outputs, len(ids), tokenizer)
        for idea in here():
            if idea.explain:
                found |= load(idea.explain)(module, outputs, seen, positions=positions, entries=entries)
    return found


# The text


def _context(module: LanguageModule, tokenizer: Tokenizer, text: str) -> list[int]:
    """The last ids of a text that fit a block of the model, from the start of a character on; at least one."""
    ids = tokenizer.prompt(text)
    longest, segment = module.backbone.core.max_length or LONGEST, module.backbone.segment
    kept = ids[-(longest // segment * segment) :]
    if len(kept) == len(ids):
        return ids
    return kept[next((i for i, one in enumerate(kept) if _begins_a_character(tokenizer, one)), 0) :]


def _begins_a_character(tokenizer: Tokenizer, token: int) -> bool:
    found = tokenizer.decode_bytes([token], continues=True)
    return not found or found[0] & 0b1100_0000 != 0b1000_0000


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], *, continues: bool) -> list[str]:
    """The text that each token completes: joined they are the text of all."""
    decoder = tokenizer.stream_decoder(continues=continues)
    each = [decoder(token) for token in ids]
    return [*each[:-1], each[-1] + decoder.flush()]


def _likeliest(outputs: Outputs, n: int, tokenizer: Tokenizer) -> list[list[list[Any]] | None]:
    top = outputs.logits[0, : n - 1].float().softmax(-1).topk(min(ALTERNATIVES, outputs.logits.shape[-1]))
    each = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    words = [[[_text(tokenizer, token), p] for token, p in zip(ids, ps, strict=True)] for ids, ps in each]
    return [None, *words]


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode_bytes([token], continues=True).decode(errors="replace")


def _surprise(outputs: Outputs, n: int) -> list[float | None]:
    nats = token_nll(outputs.logits, outputs.targets)[0, : n - 1].float()
    return [None, *nats.clamp_max(IMPOSSIBLE).tolist()]
