"""What a memory reader is: how it changes a forward, and what it asks to be written once the step is done.

Shapes: B batch, T positions, D width of the backbone, M memory_dim, V vocabulary, k results, N entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_app.data.batch import GENERATED, Batch
from lightning_app.errors import InputError
from lightning_app.memory.kinds import IndexType, Metric
from lightning_app.memory.options import AdvancedMemory, MemoryOptions
from lightning_app.memory.readers.bank import Candidates, MemoryBank, MemoryUpdate, Scope
from lightning_app.memory.slots import UNKNOWN, Entries, joined
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.backbone import HiddenStates
from lightning_app.models.extension import Extension
from lightning_app.models.losses import IGNORE

USUAL = AdvancedMemory()
Writes = Literal["always", "evaluation", "never"]


@dataclass(frozen=True)
class TokenContext:
    """What a reader may know of the tokens of a forward.

    Attributes:
        ids: (B, T) tokens.
        entries: (B, T) what would be stored with each: `tokens`, the one after it, `documents`, and `positions`; -1
            where it is unknown, and on padding.
        new: (B, T) bool, the tokens that are seen for the first time: what may be written.
        rows: (B,) the stream that each row continues.
        segments: (T,) number of each position's segment; all 0 where the block is one segment.
        earlier_ids: (B, K) the tokens before the first, -1 where they are unknown.
        embed: the backbone's, from ids (...) to (..., D), for readers that read the token behind an entry.
        nats: (B, T) -log of the probability that the backbone alone gave to the next token, 0 where that is unknown;
            given where a reader's `eviction` goes by it.
    """

    ids: Tensor
    entries: Entries
    new: Tensor
    rows: Tensor
    segments: Tensor
    earlier_ids: Tensor | None = None
    embed: Callable[[Tensor], Tensor] | None = None
    nats: Tensor | None = None

    @classmethod
    def of(cls, *, next_ids: Tensor, documents: Tensor, positions: Tensor, **others: Any) -> TokenContext:
        """All columns (B, T), rows (B,) and segments (T,) by name -> the context."""
        return cls(entries=Entries(tokens=next_ids, documents=documents, positions=positions), **others)

    @classmethod
    def of_batch(cls, batch: Batch, *, segment_length: int | None, first_row: int) -> TokenContext:
        """A batch, whose rows are numbered from `first_row` on. What is scored is new."""
        ids, targets, mask = batch.input_ids, batch.targets, batch.attention_mask
        following = nn.functional.pad(ids[:, 1:].where(mask[:, 1:], -1), (0, 1), value=-1)
        return cls.of(
            ids=ids,
            next_ids=targets.where(targets != IGNORE, following),
            documents=batch.document_keys,
            positions=batch.positions,
            new=mask & (targets != IGNORE),
            rows=first_row + torch.arange(len(ids), device=ids.device),
            segments=torch.arange(ids.shape[1], device=ids.device) // (segment_length or ids.shape[1]),
        )

    @classmethod
    def of_session(cls, ids: Tensor, *, start: int, new: int) -> TokenContext:
        """A text that is being generated, from position `start` on, of which the last `new` tokens are new."""
        B, T = ids.shape
        fresh = torch.arange(T, device=ids.device) >= T - new
        return cls.of(
            ids=ids,
            next_ids=nn.functional.pad(ids[:, 1:], (0, 1), value=-1),
            documents=torch.full_like(ids, GENERATED),
            positions=torch.arange(start, start + T, device=ids.device).expand(B, T),
            new=fresh.expand(B, T),
            rows=torch.arange(B, device=ids.device),
            segments=torch.zeros(T, dtype=torch.int64, device=ids.device),
        )

    @classmethod
    def of_next_tokens(cls, embeddings: Tensor, recent: Tensor | None = None) -> TokenContext:
        """The context of tokens (B, T) that a generation has just drawn. Their position lies after all entries; none is
        written.

        Args:
            recent: (B, K) the last tokens of the text, these among them; None: they are unknown.
        """
        B, T = embeddings.shape[:2]
        ids = embeddings.new_full((B, T), -1, dtype=torch.int64) if recent is None else recent[:, -T:]
        earlier = None if recent is None else recent[:, :-T]
        return replace(cls.of_session(ids, start=2**62, new=0), earlier_ids=earlier)

    def earlier(self, *, by_segment: bool, own_document_only: bool = False) -> Tensor:
        """(B, T, T) bool: whether query t may read what position j of its own block writes.

        Args:
            by_segment: only from earlier segments, else from all earlier positions.
            own_document_only: not from another document either.
        """
        T = self.ids.shape[1]
        if by_segment:
            before = self.segments[:, None] > self.segments[None, :]
        else:
            before = torch.ones(T, T, dtype=torch.bool, device=self.ids.device).tril(-1)
        seen = before[None].expand(len(self.ids), T, T)
        documents = self.entries.documents
        return seen & (documents[:, :, None] == documents[:, None, :]) if own_document_only else seen

    def last_tokens(self, length: int) -> Tensor:
        """(B, T, length) as `spans`, with the tokens before the block where they are known."""
        if self.earlier_ids is None:
            return self.spans(length)
        whole = replace(self, ids=torch.cat([self.earlier_ids, self.ids], dim=1))
        return whole.spans(length)[:, self.earlier_ids.shape[1] :]

    def spans(self, length: int) -> Tensor:
        """(B, T, length) the last tokens up to each position, padded with -1 on the left."""
        padded = nn.functional.pad(self.ids, (max(0, length - 1), 0), value=-1)
        return padded.unfold(1, max(1, length), 1)[:, :, :length]

    def update_of(
        self, vectors: Tensor, chosen: Tensor, *, span_length: int = 0, scores: Tensor | None = None
    ) -> MemoryUpdate:
        """What `chosen` (B, T) bool positions write: their `vectors` (B, T, M), with what is known of them.

        Args:
            scores: (B, T) by which they compete where the memory is full; None: the nats, where they are known.
        """
        rows, none = self.rows[:, None].expand_as(self.ids), self.rows.new_zeros(0, 2)
        by = self.nats if scores is None else scores
        strengths = UNKNOWN.strengths if by is None else by.detach().float()
        known = replace(self.entries, spans=self.spans(span_length), vectors=vectors.detach(), strengths=strengths)
        entries = known[chosen]
        return MemoryUpdate(rows[chosen], entries, removed=none, used=none)


@dataclass(frozen=True)
class ReaderOutput:
    """What a reader did in a forward.

    Attributes:
        terms: weight and value of its loss terms by name, with gradients.
        statistics: scalars to log.
        update: what is to be written and removed after the step; None: nothing.
        reads: what each position read, with weights, computed when it is asked for; None: nothing.
        distances: (n,) from what would be deleted to what was found, which the reader learns from; None: it does not.
    """

    terms: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    update: MemoryUpdate | None = None
    reads: Callable[[], Candidates] | None = None
    distances: Tensor | None = None


@dataclass(frozen=True)
class Said:
    """What a reader says of the next token by itself.

    Attributes:
        p: (B, T, V) float32, 0 everywhere where it has nothing to say.
        lam: share of it in what comes out, unless a `GatedMixture` decides: a scalar, or (B, T, 1).
        features: (B, T, F) how sure it is, beside what `p` shows: `Reader.features` numbers; None: no more.
        found: the entries that it is made of, with their weights in `p`; None: of none.
    """

    p: Tensor
    lam: Tensor
    features: Tensor | None = None
    found: Candidates | None = None

    def reads(self, share: Tensor) -> Callable[[], Candidates] | None:
        """`ReaderOutput.reads` where the reader has a share (scalar or (B, T, 1)) of the probability."""
        found = self.found
        return None if found is None else lambda: replace(found, weights=share * found.weights)


class Reader(Extension, ABC):
    """Reads from a bank of memories of its own. Concrete readers override `around`, `at_states` or `at_logits`.

    A hook gets what the backbone has computed so far and returns it changed, with a `ReaderOutput`. It writes nothing.

    Args:
        memory_dim: M; None: the backbone's width.
        scope: one memory for all rows (`shared`), one per row of the batch (`stream`), or one per row that is cleared
            at each document's end (`document`).
        streams: number of memories where the scope is not `shared`: batch size x ranks.
        writes: when what was seen is written: in training and evaluation, in evaluation alone, or never (the memory
            is filled by `memory build`). Evaluation writes to a copy.
        memory_size, index_type, num_clusters, num_search_results: see `MemoryOptions`.
        forgetfulness_factor, metric, span_length: see `MemoryOptions`.
        advanced: see `AdvancedMemory`; in a description a dict.
    """

    reads_input = False  # overrides `around`
    reads_tokens = False  # which the states do not tell
    reads_prompts = False  # and nothing of a forward
    scores_entries = False  # has what `lowest_score` goes by
    by_segment = False  # reads within the block what earlier segments wrote; else what earlier positions did
    mixes = False  # has a distribution of its own, which `says` gives
    features = 0  # of `Said.features`
    advanced_type: type[AdvancedMemory] = AdvancedMemory
    group = "Memory"  # which joins the model for all readers: what follows are its hooks, not those of `Extension`

    bank: MemoryBank

    @property
    def wants_nats(self) -> bool:
        """Whether `TokenContext.nats` decides what stays in its memory."""
        return self.advanced.eviction == "least_surprising"

    @property
    def metric(self) -> Metric:
        """The metric of the distances in `ReaderOutput.reads`."""
        return self.bank.shared.metric

    @abstractmethod
    def __init__(
        self,
        memory_dim: int | None = None,
        scope: Scope = "shared",
        streams: int = 1,
        writes: Writes = "always",
        memory_size: int = MemoryOptions.memory_size,
        index_type: IndexType = MemoryOptions.index_type,
        num_clusters: int = MemoryOptions.num_clusters,
        num_search_results: int = MemoryOptions.num_search_results,
        forgetfulness_factor: float = MemoryOptions.forgetfulness_factor,
        metric: Metric = MemoryOptions.metric,
        span_length: int = MemoryOptions.span_length,
        advanced: AdvancedMemory = USUAL,
    ):
        super().__init__()
        self.memory_dim, self.scope, self.streams, self.writes = memory_dim, scope, streams, writes
        self.advanced = self.advanced_type(**advanced) if isinstance(advanced, dict) else advanced
        self._memory_options: dict[str, Any] = {
            "memory_size": memory_size,
            "index_type": index_type,
            "num_clusters": num_clusters,
            "num_search_results": num_search_results,
            "forgetfulness_factor": forgetfulness_factor,
            "metric": metric,
            "span_length": span_length,
        }
        self._built = False

    def build(self, *, width: int, vocab_size: int) -> None:
        """Make memories and layers for a backbone of this width and vocabulary; a reader is built once."""
        if self._built:
            raise InputError("a reader belongs to one model: make another one for this model")
        dim = width if self.memory_dim is None else self.memory_dim
        self.memory_dim = dim
        rare = {one.name: getattr(self.advanced, one.name) for one in fields(AdvancedMemory)}
        if rare["path"] and self.scope != "shared":
            raise InputError(f"path is {rare['path']!r} with scope {self.scope!r}: one file, one memory")
        if rare["eviction"] == "lowest_score" and not self.scores_entries:
            raise InputError(
                f"eviction is 'lowest_score', but {type(self).__name__} learns no score: give least_surprising, or "
                "AttentionReader"
            )
        self.bank = MemoryBank(
            lambda: AssociativeMemory(memory_dim=dim, **self._memory_options, **rare), self.scope, self.streams
        )
        self._built = True
        self.build_layers(width, vocab_size)

    def build_layers(self, width: int, vocab_size: int) -> None:
        """Make the layers of a reader; called once, by `build`."""

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` that rebuild this reader, in plain types; one with others adds them."""
        own = {
            "memory_dim": self.memory_dim,
            "scope": self.scope,
            "streams": self.streams,
            "writes": self.writes,
            "advanced": asdict(self.advanced),
        }
        return {**self._memory_options, **own}

    def writes_now(self) -> bool:
        """Whether this reader writes in the stage (training or evaluation) that the module is in."""
        return self.writes == "always" or (self.writes == "evaluation" and not self.training)

    def queries(self, vectors: Tensor) -> Tensor:
        """What the memory is searched with: from the embeddings (`reads_input`) or last states (..., D) -> (..., M)."""
        return vectors.float()

    def layer(self, blocks: int) -> int | None:
        """Number of the layer of so many whose states the memory holds; None: the last states, or the embeddings."""
        return None

    def follow_step(self, distances: Tensor | None) -> None:
        """Called once after each optimizer step, with `ReaderOutput.distances` of all its batches and ranks."""

    def around(
        self,
        embeddings: Tensor,
        context: TokenContext,
        hidden: Callable[[Tensor], HiddenStates],
        *,
        memory_input: Tensor | None = None,
    ) -> tuple[HiddenStates, ReaderOutput]:
        """(B, T, D) token embeddings -> states, of readers with `reads_input`: all of the way through the backbone.

        Args:
            hidden: the backbone, from the embeddings of any number of segments (B, L, D) to their states.
            memory_input: (B, T, D) what the memory is searched with; None: the embeddings.
        """
        raise NotImplementedError(f"{type(self).__name__} does not read at the input")

    def at_states(self, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """(B, T, D) last states, before the output matrix."""
        return states, ReaderOutput()

    def at_logits(self, logits: Tensor, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """(B, T, V) logits, and the states that they were computed from; log-probabilities are logits too."""
        return logits, ReaderOutput()

    def says(self, log_p: Tensor, states: Tensor, context: TokenContext) -> tuple[Said, ReaderOutput]:
        """(B, T, V) log-probabilities of the model, and its states, both float32 -> what a reader that `mixes` says in
        their place, in training too."""
        raise NotImplementedError(f"{type(self).__name__} has no distribution of its own")


def merged(outputs: list[ReaderOutput]) -> ReaderOutput:
    """One output for the hooks of one reader: means of terms and statistics, updates joined, the first `reads` and
    `distances`."""
    updates = [output.update for output in outputs if output.update is not None]
    return ReaderOutput(
        {
            name: (weight, torch.stack([output.terms[name][1] for output in outputs if name in output.terms]).mean())
            for some in outputs
            for name, (weight, _) in some.terms.items()
        },
        {
            name: torch.stack([output.statistics[name] for output in outputs if name in output.statistics]).mean()
            for some in outputs
            for name in some.statistics
        },
        joined(updates) if updates else None,
        next((output.reads for output in outputs if output.reads is not None), None),
        next((output.distances for output in outputs if output.distances is not None), None),
    )
