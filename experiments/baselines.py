"""What any memory must beat, and needs none: counts of n-grams, a compressor, and a model that learns as it reads.

Shapes: N tokens, V vocabulary, n order.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.runs import Scores, context_of
from experiments.texts import articles, held_out
from lightning_app.data.batch import Batch
from lightning_app.data.compressors import bits_per_byte, ppmd_size
from lightning_app.memory.model import MemoryLM
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.models.losses import token_nll
from lightning_app.models.ngrams import NGramCounts
from lightning_app.training.adapting import adapting
from lightning_app.training.compositions import CausalLM

ORDER = 5
PPMD, DYNAMIC = "PPMd", "dynamic evaluation"
RATES = (3e-5, 1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 2e-3, 4e-3)  # of dynamic evaluation, tried on the text to choose on
TRIED = 2  # of the blocks to choose on it learns one half: it is as slow as training


def counts_of(ids: Tensor, vocab_size: int) -> NGramCounts:
    """Of a text (N,), its documents one after the other."""
    return NGramCounts.of(ids, order=ORDER, vocab_size=vocab_size)


def p_of_next(counts: NGramCounts, ids: Tensor) -> Tensor:
    """(N,) -> (N - 1,) float64 probability of each token but the first, after all before it that the counts look at."""
    return counts.probabilities(ids)[1:]


def ppmd(train: str, heldout: str, test: str | None) -> dict[str, Any] | None:
    """Of the whole text to score, after the one to learn; None where PPMd is not installed."""
    if not importlib.util.find_spec("pyppmd"):
        return None
    learned, scored = (_bytes(documents) for documents in (articles(train), held_out(heldout, test)[1]))
    return {"test_bpb": bits_per_byte(ppmd_size, scored, after=learned), "memory_bytes": len(learned), "parameters": 0}


def _bytes(documents: Sequence[Any]) -> bytes:
    return "\n".join(document.text for document in documents).encode()


def adapted(model: MemoryLM, batches: Sequence[Batch], lr: float) -> Scores:
    """Read a text, and learn each block once it has been scored. The model's weights are the old ones afterwards."""
    nats = []
    with adapting(CausalLM(model.backbone), AdaptationOptions(lr=lr)) as adaptation:
        assert adaptation is not None
        for batch in batches:
            with torch.no_grad():
                nats.append(token_nll(model.eval().run(batch.input_ids, context_of(batch)).logits, batch.targets))
            adaptation.learn(batch)
    return Scores.of(list(batches), nats)


def dynamic(model: MemoryLM, tuning: Sequence[Batch], test: Sequence[Batch]) -> tuple[dict[str, Any], Scores]:
    """At the rate that is best on the blocks to choose on."""
    some = tuning[: -(-len(tuning) // TRIED)]
    tried = {lr: float(adapted(model, some, lr).nats.mean()) for lr in RATES}
    best = min(tried, key=lambda lr: tried[lr])
    start = time.process_time()
    scores = adapted(model, test, best)
    seconds = (time.process_time() - start) / len(scores.nats)
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"parameters": parameters, "memory_bytes": 0, "seconds_per_token": seconds}
    return {"lr": best, "tuning_nats": tried[best], **facts}, scores
