"""A reader that puts the text of what it finds before a prompt, for a model that reads its context.

Shapes: T tokens of a prompt, M memory_dim, K results, P passages, n entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.memory.kinds import Metric
from lightning_app.memory.readers.base import ReaderOutput, TokenContext
from lightning_app.memory.readers.distribution import KNNReader
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory

GAP = " ... "  # where tokens of a passage are not stored
HALF = "\N{REPLACEMENT CHARACTER}"  # a passage may begin within a character


@dataclass(frozen=True)
class Passage:
    """A part of a stored document.

    Attributes:
        document: its content key.
        start, stop: tokens of the document.
        gain: by how much nearer its entries are to the prompt's states than the farthest that were found.
    """

    document: int
    start: int
    stop: int
    gain: float


class PromptReader(KNNReader):
    """Puts the passages before a prompt that are nearest to it, in `generate`, `chat` and `serve`.

    Its memory is filled as that of a `KNNReader`, with states and the tokens that followed, from which the text is had
    again; but nothing is mixed into the logits. The states of the prompt are searched for one by one, and a passage has
    from each of them how much nearer its nearest entry is than the farthest that was found, so that words that stand
    everywhere count little (late interaction: Khattab and Zaharia 2020, arXiv:2004.12832).

    Args:
        passages: how many are put before the prompt, the nearest first.
        passage_length: tokens of a passage. A quarter more is shown on both sides. A document of this length or less is
            one passage.
        query_length: tokens of the prompt that count, its last ones; of a chat's, of its last message.
        depth: of the layer whose states are searched, from 0 (the first one) to 1 (the last one): what is said again in
            other words is found better where a model does not predict yet.
        num_search_results: of each state of the prompt.
        span_length: at least 1, or the first token of each document is missing.
        kwargs: see `Reader` and `AssociativeMemory`.
    """

    mixes = False
    reads_prompts = True

    def __init__(
        self,
        passages: int = 1,
        passage_length: int = 256,
        query_length: int = 128,
        depth: float = 0.3,
        num_search_results: int = 16,
        metric: Metric = "cosine",
        span_length: int = 1,
        **kwargs: Any,
    ):
        super().__init__(
            lam=0.0, num_search_results=num_search_results, metric=metric, span_length=span_length, **kwargs
        )
        lengths = {"passages": passages, "passage_length": passage_length, "query_length": query_length}
        if wrong := [f"{name} is {value}; it must be at least 1" for name, value in lengths.items() if value < 1]:
            raise InputError(wrong[0])
        if not 0 <= depth <= 1:
            raise InputError(f"depth is {depth}; it must lie between 0 (the first layer) and 1 (the last one)")
        if self.scope != "shared" or self.writes != "never":
            given = f"scope is {self.scope!r} and writes {self.writes!r}"
            raise InputError(f"{given}; PromptReader has one memory that `memory build` fills: leave both out")
        self.passages, self.passage_length, self.query_length, self.depth = *lengths.values(), depth

    def tune(self, *, lam: float, temperature: float) -> None:
        """It has no weight: what it finds is read by the model."""
        if lam:
            raise InputError("a PromptReader has no lam and no temperature to give or tune: leave them out, and --tune")
        super().tune(lam=lam, temperature=temperature)

    def config(self) -> dict[str, Any]:
        names = ("passages", "passage_length", "query_length", "depth")
        inherited = {name: value for name, value in super().config().items() if name not in ("lam", "temperature")}
        return {**inherited, **{name: getattr(self, name) for name in names}}

    def layer(self, blocks: int) -> int:
        return min(blocks - 1, int(self.depth * blocks))

    def at_logits(self, logits: Tensor, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """As they are."""
        return logits, ReaderOutput()

    @torch.no_grad()
    def nearest(self, states: Tensor) -> list[Passage]:
        """The passages nearest to the states (T, M) of a prompt, the nearest first."""
        memory = self.bank.shared
        if not memory.size():
            return []
        ids, distances = memory.search(states, min(memory.num_search_results, memory.size()))
        return best(memory.payload(ids), distances, length=self.passage_length, most=self.passages)

    def text(self, passage: Passage, tokenizer: Tokenizer) -> str:
        """What is stored of a passage."""
        tokens = tokens_of(self.bank.shared, passage)
        tokens = {at: token for at, token in tokens.items() if token != tokenizer.eot}
        pieces = [tokenizer.decode(piece).strip(HALF).strip() for piece in _pieces(tokens)]
        return GAP.join(piece for piece in pieces if piece)


def best(known: Entries, distances: Tensor, *, length: int, most: int) -> list[Passage]:
    """The passages of `length` tokens with the highest gains, among what was found (T, K)."""
    gains = (distances.amax(1, keepdim=True) - distances).nan_to_num(0.0, posinf=0.0)
    places = torch.stack([known.documents, known.positions // length], dim=-1).flatten(0, 1)
    places, numbers = places.unique(dim=0, return_inverse=True)  # (P, 2)
    each = gains.new_zeros(len(gains), len(places)).scatter_reduce(1, numbers.view_as(gains), gains, "amax")
    total = each.sum(0).masked_fill(places[:, 0] < 0, -torch.inf)  # of no known document
    chosen = total.topk(min(most, len(places)))
    more = length // 4
    return [
        Passage(document, number * length - more, (number + 1) * length + more, gain)
        for (document, number), gain in zip(places[chosen.indices].tolist(), chosen.values.tolist(), strict=True)
        if gain > -torch.inf
    ]


def tokens_of(memory: AssociativeMemory, passage: Passage) -> dict[int, int]:
    """Tokens that are stored of a passage, by their place in the document."""
    ids = memory.ids()
    known = memory.payload(ids[memory.payload(ids).documents == passage.document])
    found = dict(zip((known.positions + 1).tolist(), known.tokens.tolist(), strict=True))
    if memory.span_length and len(first := known.spans[known.positions == 0]):
        found[0] = int(first[0, -1])
    return {at: found[at] for at in sorted(found) if passage.start <= at < passage.stop and found[at] >= 0}


def _pieces(tokens: dict[int, int]) -> list[list[int]]:
    """Runs of tokens without a gap."""
    pieces: list[list[int]] = []
    for at, token in tokens.items():
        if at - 1 in tokens:
            pieces[-1].append(token)
        else:
            pieces.append([token])
    return pieces
