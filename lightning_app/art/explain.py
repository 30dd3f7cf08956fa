"""Which categories a text is in, in plain types."""

from __future__ import annotations

from typing import Any

import torch

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.seen_text import SeenText
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.models.extension import Outputs
from lightning_app.training.module import LanguageModule


def explain(module: LanguageModule, outputs: Outputs, text: SeenText, **_: Any) -> dict[str, Any]:
    """`categories`: what each ART network makes of a text, see `_category`; nothing of a model without one."""
    found = [one for one in module.extensions if isinstance(one, ARTRegularizer)]
    return {"categories": [_category(one, outputs, text.tokenizer) for one in found]} if found else {}


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
