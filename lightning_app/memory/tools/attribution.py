"""What each position of a text read from a model's memories, in plain types.

Shapes: C candidates of a reader.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from lightning_app.data.seen_text import SeenText
from lightning_app.memory.extension import UNKNOWN, Memory, memory_of
from lightning_app.memory.model import MemoryStates
from lightning_app.memory.readers.bank import OWN, Candidates
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.tools.inspect import Neighbour, neighbours, shown
from lightning_app.models.extension import Outputs
from lightning_app.training.module import LanguageModule

SPAN = 32  # tokens that show a place of the text itself


def explain(
    module: LanguageModule, outputs: Outputs, text: SeenText, *, positions: int, entries: int
) -> dict[str, Any]:
    """`memory`: see `reads_of`; nothing of a model without readers."""
    memory = memory_of(module)
    if memory is None or not memory.readers or not isinstance(outputs.forward, MemoryStates):
        return {}
    return {"memory": reads_of(memory, outputs.forward, text, positions=positions, entries=entries)}


def reads_of(
    memory: Memory, found: MemoryStates, text: SeenText, *, positions: int, entries: int
) -> list[dict[str, Any]]:
    """The name of each reader, the number of its entries, and what each of the last positions read.

    A read has its position, that position's token, `weight` (what all of its entries have together) and the entries
    with the highest weights: `id` (None: a place of this text, which the model would store), `text` (up to the entry;
    None: it was not stored), `next_token`, `document`, `position`, `weight`, and `distance` or `similarity`.
    """
    last, names, readers = range(len(text.ids))[-positions:], memory.documents, []
    for reader, output in zip(memory.readers, found.reader_outputs, strict=True):
        name, size = type(reader).__name__.removesuffix("Reader").lower(), reader.bank.size()
        reads = None if output.reads is None else output.reads()
        each = [
            {
                "position": t,
                "token": text.tokens[t],
                **_read(reader, reads, t, text, names, at_most=entries),
            }
            for t in last
            if reads is not None
        ]
        readers.append({"reader": name, "entries": size, "reads": each})
    return readers


def _read(
    reader: Reader, reads: Candidates, position: int, text: SeenText, names: dict[int, str], *, at_most: int
) -> dict[str, Any]:
    weights_C, ids_C, distances_C = (x[0, position] for x in (reads.weights, reads.ids, reads.distances))
    weights_C = weights_C.where(ids_C != -1, 0.0)
    best = weights_C.topk(min(at_most, len(weights_C))).indices
    best = best[weights_C[best] > 0]
    ids, distances = ids_C[best], distances_C[best]
    known = neighbours(reader.bank.of(0), ids.where(ids >= 0, -1), distances, text.tokenizer, names)
    stored = {one.id: _stored(one) for one in known}
    listed = [
        {**(_own(OWN - i, text) if i <= OWN else stored[i]), "weight": weight, **_nearness(distance, reader.metric)}
        for i, distance, weight in zip(ids.tolist(), distances.tolist(), weights_C[best].tolist(), strict=True)
    ]
    return {"weight": float(weights_C.sum()), "entries": listed}


def _stored(known: Neighbour) -> dict[str, Any]:
    """What is shown of an entry. Of its document the name alone, as a reader must not learn folders of this machine."""
    return {
        "id": known.id,
        "text": known.span or None,
        "next_token": known.next or None,
        "document": None if known.document == UNKNOWN else PurePath(known.document).name,
        "position": known.position if known.position >= 0 else None,
    }


def _own(position: int, text: SeenText) -> dict[str, Any]:
    """A place of the text itself."""
    following = text.ids[position + 1] if position + 1 < len(text.ids) else -1
    span, after = shown(text.tokenizer, text.ids[max(0, position + 1 - SPAN) : position + 1], following)
    return {"id": None, "text": span, "next_token": after or None, "document": None, "position": position}


def _nearness(distance: float, metric: str) -> dict[str, float]:
    """Squared L2 is a distance, cosine and inner product are similarities."""
    if metric == "l2":
        return {"distance": distance}
    return {"similarity": 1 - distance if metric == "cosine" else -distance}
