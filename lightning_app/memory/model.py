"""MemoryLM: a backbone that reads from memories, and says what should be written to them.

Shapes: B batch, T positions, S segments of L positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.memory.readers.base import Reader, ReaderOutput, TokenContext, merged
from lightning_app.memory.readers.mixture import GatedMixture
from lightning_app.models.backbone import Backbone, Cache, Forward, HiddenStates
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.models.registry import describe
from lightning_app.training.distributed import world_size


@dataclass(frozen=True)
class MemoryStates(Forward):
    """What `MemoryLM.run` computed.

    Attributes:
        before: (B, T, D) last states before any reader changed them.
        reader_outputs: what each reader did.
    """

    before: Tensor
    reader_outputs: list[ReaderOutput]

    @property
    def plain_states(self) -> HiddenStates:
        return HiddenStates(self.before, self.states.layers)

    def detached(self) -> MemoryStates:
        """Only what a step writes and learns from, of what the readers did."""
        reader_outputs = [
            ReaderOutput(update=output.update, distances=output.distances) for output in self.reader_outputs
        ]
        return replace(
            cast(MemoryStates, super().detached()), before=self.before.detach(), reader_outputs=reader_outputs
        )


class MemoryLM(Backbone):
    """A language model with readers: each changes the input, the last states, or the logits, in this order.

    Args:
        backbone: the language model.
        readers: see `memory.readers`.
        segment_length: L: the block is cut into segments, and later ones read what earlier ones would store. None: the
            block is one segment.
        isolate_segments: segments do not see each other, so that the context is L tokens, and what lies before can
            only be had from a memory. Otherwise the context is the block.
        freeze: train the readers alone: no weight of the language model, which has no dropout either.

    Attributes:
        first_row: number of a batch's first row among those of all ranks.

    Raises:
        InputError: options that contradict each other or the backbone.
    """

    no_graph = "it has a memory, and a search by FAISS cannot be written as a graph"

    def __init__(
        self,
        backbone: Backbone,
        readers: Sequence[Reader],
        segment_length: int | None = None,
        isolate_segments: bool = True,
        freeze: bool = False,
    ):
        super().__init__()
        self.backbone, self.freeze = backbone, freeze
        if freeze:
            backbone.requires_grad_(False)
        self.vocab_size, self.width = backbone.vocab_size, backbone.width
        self.context_length = segment_length if isolate_segments else None  # None: as long as the block
        self.max_length = backbone.max_length if self.context_length is None else self.context_length
        self.segment_length = segment_length
        self.isolate_segments = isolate_segments
        self.first_row = 0
        if segment_length is not None and not 1 <= segment_length <= (backbone.max_length or segment_length):
            raise InputError(
                f"segment_length is {segment_length}; it must lie between 1 and the backbone's {backbone.max_length}"
            )
        if segment_length is not None and not isolate_segments and any(reader.reads_input for reader in readers):
            raise InputError(
                "a reader at the input needs isolate_segments: true with a segment_length: "
                "a segment's input depends on what the one before would store"
            )
        self.readers = cast(Sequence[Reader], nn.ModuleList(readers))
        if sum(reader.reads_input for reader in self.readers) > 1:
            raise InputError("two readers at the input: only one can be given, others read states or logits")
        for i, reader in enumerate(self.readers):
            if isinstance(reader, GatedMixture):
                self._check_last(reader, i)
                reader.join(self.readers[:i])
            reader.build(width=backbone.width, vocab_size=backbone.vocab_size)

    def _check_last(self, mixture: GatedMixture, place: int) -> None:
        if place + 1 < len(self.readers):
            raise InputError(
                f"GatedMixture is reader {place + 1} of {len(self.readers)}: it mixes what those before it say, so it "
                "stands last"
            )

    def train(self, mode: bool = True) -> MemoryLM:
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    @property
    def attention_width(self) -> int:  # type: ignore[override]
        return self.backbone.attention_width

    @property
    def core(self) -> Backbone:
        return self.backbone.core

    @property
    def without_memory(self) -> MemoryLM:
        return MemoryLM(self.backbone, [], self.segment_length, self.isolate_segments)

    @property
    def of_states(self) -> Backbone:
        kept = [reader for reader in self.readers if not (reader.reads_tokens or reader.reads_prompts)]
        if len(kept) == len(self.readers):
            return self
        if not kept and self.context_length is None:
            return self.backbone
        model = MemoryLM(self.backbone, [], self.segment_length, self.isolate_segments)
        model.readers = cast(Sequence[Reader], nn.ModuleList(kept))
        return model

    @property
    def most_rows(self) -> int | None:
        """On each rank; each row has a memory of its own where readers have streams."""
        streams = [reader.streams for reader in self.readers if reader.scope != "shared"]
        return min(streams) // world_size() if streams else None

    @property
    def longest_text(self) -> int | None:
        return self.max_length if self.context_length is None else None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.backbone.blocks

    @property
    def segment(self) -> int:
        return self.context_length or 1

    @contextmanager
    def outside_session(self) -> Iterator[None]:
        with ExitStack() as stack:
            for reader in self.readers:
                stack.enter_context(reader.bank.outside_evaluation())
            yield

    def attention_visible(self) -> AbstractContextManager[None]:
        return self.backbone.attention_visible()

    def config(self) -> dict[str, Any]:
        return {
            "backbone": describe(self.backbone),
            "readers": [describe(reader) for reader in self.readers],
            "segment_length": self.segment_length,
            "isolate_segments": self.isolate_segments,
            "freeze": self.freeze,
        }

    def flops_per_token(self, length: int) -> int:
        """FLOPs of the backbone and of the readers' layers; searches are not counted."""
        layers = sum(m.weight.numel() for r in self.readers for m in r.modules() if isinstance(m, nn.Linear))
        return self.backbone.flops_per_token(min(length, self.context_length or length)) + 6 * layers

    # A whole block, in training and evaluation

    def context(self, batch: Batch) -> TokenContext:
        """Where the tokens of a batch are from."""
        return TokenContext.of_batch(batch, segment_length=self.segment_length, first_row=self.first_row)

    def run_batch(self, ids: Tensor, batch: Batch, *, layers: Sequence[int] = ()) -> MemoryStates:
        return self.run(ids, self.context(batch), layers=layers)

    def run(
        self, ids: Tensor, context: TokenContext, *, layers: Sequence[int] = (), memory_input: Tensor | None = None
    ) -> MemoryStates:
        """(B, T) ids, of which `context` says where they are from, -> logits, and what the readers did.

        `ids` may differ from `context.ids` by noise. A reader at the input searches with `memory_input` (B, T, D), or
        with the embeddings.
        """
        length = self.context_length or ids.shape[1]
        if ids.shape[1] % length:
            raise InputError(f"a block of {ids.shape[1]} tokens is not a multiple of segment_length {length}")
        reader_outputs: list[list[ReaderOutput]] = [[] for _ in self.readers]
        context = replace(context, embed=self.backbone.embed)
        states = self._read_input(ids, context, length, reader_outputs, layers, memory_input)
        last = states.last
        if any(reader.wants_nats for reader in self.readers):
            context = replace(context, nats=self._nats(last, context))
        for reader, done in zip(self.readers, reader_outputs, strict=True):
            last, output = reader.at_states(last, context)
            done.append(output)
        logits, outputs = self._read_logits(last, context)
        for output, done in zip(outputs, reader_outputs, strict=True):
            done.append(output)
        return MemoryStates(
            HiddenStates(last, states.layers), logits, states.last, [merged(done) for done in reader_outputs]
        )

    @torch.no_grad()
    def _nats(self, states: Tensor, context: TokenContext) -> Tensor:
        """(B, T) of each next token, by the backbone alone; 0 where it is unknown."""
        tokens = context.entries.tokens
        return token_nll(self.backbone.logits(states), tokens.masked_fill(tokens < 0, IGNORE))

    def states(self, ids: Tensor, *, layers: Sequence[int] = ()) -> HiddenStates:
        """(B, T) ids of a whole block -> states as they would be without any reader; T need not fill its segments."""
        T = ids.shape[1]
        length = min(self.context_length or T, T)
        states = self._of_segments(nn.functional.pad(ids, (0, -T % length)), length, layers)
        return HiddenStates(states.last[:, :T], {i: state[:, :T] for i, state in states.layers.items()})

    def text_logits(self, ids: Tensor) -> Tensor:
        return self.backbone.logits(self.states(ids).last)

    def plain_logits(self, ids: Tensor, found: MemoryStates) -> Tensor:
        """(B, T, V) as they would be without any reader."""
        reads_input = any(reader.reads_input for reader in self.readers)
        return self.text_logits(ids) if reads_input else self.backbone.logits(found.before)

    def _read_input(
        self,
        ids: Tensor,
        context: TokenContext,
        length: int,
        reader_outputs: list[list[ReaderOutput]],
        layers: Sequence[int],
        memory_input: Tensor | None,
    ) -> HiddenStates:
        """States; what a reader at the input did goes behind its earlier outputs."""

        def hidden(some: Tensor) -> HiddenStates:
            segments = some.reshape(-1, min(length, some.shape[1]), some.shape[2])
            return _joined(self.backbone.hidden_of_texts(segments, layers=layers), len(some))

        for reader, done in zip(self.readers, reader_outputs, strict=True):
            if reader.reads_input:
                embeddings = self.backbone.embed(ids)
                states, output = reader.around(embeddings, context, hidden, memory_input=memory_input)
                done.append(output)
                return states
        return self._of_segments(ids, length, layers)

    def _of_segments(self, ids: Tensor, length: int, layers: Sequence[int]) -> HiddenStates:
        """All segments at once: (B, S L) -> (B S, L, D) -> (B, S L, D)."""
        return _joined(self.backbone.states(ids.reshape(-1, length), layers=layers), len(ids))

    def _read_logits(self, states: Tensor, context: TokenContext) -> tuple[Tensor, list[ReaderOutput]]:
        """(B, T, D) last states -> logits, and what each reader did to them."""
        logits, outputs = self.backbone.logits(states), []
        if self.readers and isinstance(mixture := self.readers[-1], GatedMixture):
            return mixture.read(self.readers[:-1], logits, states, context)
        for reader in self.readers:
            logits, output = reader.at_logits(logits, states, context)
            outputs.append(output)
        return logits, outputs

    # The Backbone contract, for generation: the session's own text is read once it has been written

    def embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embed(ids)

    def hidden(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        layers: Sequence[int] = (),
    ) -> HiddenStates:
        context = replace(TokenContext.of_next_tokens(embeddings), embed=self.backbone.embed)

        def hidden(some: Tensor) -> HiddenStates:
            return self.backbone.hidden(some, mask=mask, cache=cache, layers=layers)

        reader = next((reader for reader in self.readers if reader.reads_input), None)
        states = reader.around(embeddings, context, hidden)[0] if reader else hidden(embeddings)
        last = states.last
        for reader in self.readers:
            last, _ = reader.at_states(last, context)
        return HiddenStates(last, states.layers)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._logits(hidden, None)

    def _logits(self, hidden: Tensor, recent: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, V) behind tokens that were drawn; see `TokenContext.of_next_tokens`."""
        return self._read_logits(hidden, TokenContext.of_next_tokens(hidden, recent))[0]

    def next_logits(self, ids: Tensor, *, mask: Tensor | None, cache: Cache | None, recent: Tensor) -> Tensor:
        return self._logits(self.hidden(self.embed(ids), mask=mask, cache=cache).last[:, -1:], recent)[:, -1]

    def new_cache(self, batch_size: int) -> Cache:
        return self.backbone.new_cache(batch_size)


def _joined(states: HiddenStates, rows: int) -> HiddenStates:
    """(B S, L, D) -> (B, S L, D) of B rows."""
    layers = {i: state.reshape(rows, -1, state.shape[-1]) for i, state in states.layers.items()}
    return HiddenStates(states.last.reshape(rows, -1, states.last.shape[-1]), layers)
