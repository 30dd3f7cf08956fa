"""Memory: readers of associative memories, joined to any model, and what is stored for them. VardaGPT has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM, MemoryStates
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import Reader, ReaderOutput, TokenContext
from lightning_app.memory.readers.learned import AdvancedReader
from lightning_app.memory.readers.mixture import GatedMixture
from lightning_app.memory.readers.ngram import NGramReader
from lightning_app.memory.readers.prompt import PromptReader
from lightning_app.memory.slots import joined, mapped
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.backbone import Backbone
from lightning_app.models.extension import Extension, Found, Outputs
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.models.registry import describe
from lightning_app.models.stored import Draw, Stored, text_of
from lightning_app.models.weighing import Over, Terms
from lightning_app.training.checkpoint_keys import DOCUMENTS
from lightning_app.training.distributed import gathered
from lightning_app.training.module import LanguageModule

SESSION_CHUNK = 16  # tokens
T = TypeVar("T")
FEW = 0.1  # of the entries that look-ups could have found: so few mean that they find the same ones all the time
EVIDENCE = 10_000  # entries that an evaluation has looked up, for this to be said
UNKNOWN = "unknown"  # name of a document that nothing is known of
HELPED = 0.01  # nats: a token counts as helped or hurt by the memory beyond this


class Memory(Extension):
    """Readers of associative memories (`memory.readers`), which change input, states and logits of a model.

    What a training step would write is written once the optimizer has stepped. Validation, test, prediction and
    generation write to a copy, which is forgotten at their end. Readers that stand in the list of extensions by
    themselves are in one memory with the defaults of this one.

    Args:
        readers: of memories, in the order in which they change states and logits.
        segment_length: see `MemoryLM`.
        isolate_segments: see `MemoryLM`.
        freeze: see `MemoryLM`; a fit of the readers alone also leaves the text that is counted as it is.

    Attributes:
        readers: those; they are parts of the model.
        lm: the model with the readers.
        documents: where documents came from, by content key; a checkpoint keeps those that a memory holds.
    """

    over_ranks = True
    lm: MemoryLM
    readers: Sequence[Reader]

    def __init__(
        self,
        readers: list[Reader],
        segment_length: int | None = None,
        isolate_segments: bool = True,
        freeze: bool = False,
    ):
        super().__init__()
        object.__setattr__(self, "readers", readers)
        self.segment_length, self.isolate_segments, self.freeze = segment_length, isolate_segments, freeze
        self.documents: dict[int, str] = {}
        self._session_position = 0
        self._counts: dict[str, float] = {}  # of the last step
        self._distinct: dict[int, list[float]] = {}  # of an evaluation's batches, by reader
        self._positions = 0  # that it has looked from
        self._warned_of: set[int] = set()

    def config(self) -> dict[str, Any]:
        return {
            "readers": [describe(reader) for reader in self.readers],
            "segment_length": self.segment_length,
            "isolate_segments": self.isolate_segments,
            "freeze": self.freeze,
        }

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    # It joins a model

    def wrap(self, backbone: Backbone) -> MemoryLM:
        if isinstance(backbone, MemoryLM):
            raise InputError("the model has a memory already: give all readers to one Memory")
        lm = MemoryLM(backbone, self.readers, self.segment_length, self.isolate_segments, self.freeze)
        object.__setattr__(self, "lm", lm)  # not as a part: it is the module's
        return lm

    def unwrap(self, backbone: Backbone) -> Backbone:
        assert isinstance(backbone, MemoryLM)
        return backbone.backbone

    def use_data(self, data: TextDataModule, *, stage: str, rank: int) -> None:
        self.lm.first_row = rank * data.dataloader.batch_size
        for reader in self.readers:
            if not (self.freeze and reader.reads_tokens):  # what is counted belongs to the model
                reader.use_data(data, stage=stage, rank=rank)
        if stage != "fit":
            return
        self._check_counts()
        self._warn_if_nothing_learns_to_store(data.block_size)
        if not data.streamed("train"):
            text = data.tokens("train")
            keys = text.keys_of(np.arange(text.n_documents)).tolist()
            self.documents |= dict(zip(keys, text.names, strict=True))

    def _check_counts(self) -> None:
        """A gate that learns on the text that is counted would trust the counts in everything."""
        counted = any(isinstance(reader, GatedMixture) and reader.reads_tokens for reader in self.readers)
        if counted and not self.freeze:
            raise InputError(
                "a GatedMixture over NGramReader learns on a text that is not counted: train the model and count "
                "without the mixture, then fit it from there (--init_from) with freeze: true and another text"
            )

    def _warn_if_nothing_learns_to_store(self, block_size: int) -> None:
        if any(reader.by_segment for reader in self.readers) and (
            self.segment_length is None or self.segment_length >= block_size
        ):
            rank_zero_warn(
                f"segment_length is {self.segment_length} and data.block_size {block_size}: the block is one "
                "segment, so cross-entropy cannot teach what to store; give a segment_length below block_size"
            )

    # A batch

    def terms(self, outputs: Outputs) -> Terms:
        return self._named([output.terms for output in _found(outputs).reader_outputs])

    @property
    def means_over(self) -> dict[str, Over]:  # type: ignore[override]
        return self._named([reader.means_over for reader in self.readers])

    def measures(self, outputs: Outputs, *, training: bool) -> dict[str, Tensor]:
        statistics = self._named([output.statistics for output in _found(outputs).reader_outputs])
        if training:
            return statistics
        self._positions += outputs.ids.numel()
        for i, output in enumerate(_found(outputs).reader_outputs):
            if (share := output.statistics.get("distinct")) is not None:
                self._distinct.setdefault(i, []).append(float(share))
        return {**statistics, **self._help(outputs)}

    def _named(self, each: Sequence[Mapping[str, T]]) -> dict[str, T]:
        """Join the numbers of all readers, by the name that each is logged under."""
        return {f"{self._prefix(i)}_{name}": value for i, one in enumerate(each) for name, value in one.items()}

    def _prefix(self, i: int) -> str:
        return "memory" if len(self.readers) == 1 else f"memory{i}"

    @torch.no_grad()
    def _help(self, outputs: Outputs) -> dict[str, Tensor]:
        """Shares of the tokens that the memory made likelier and less likely by more than `HELPED` nats."""
        real = outputs.targets != IGNORE
        plain = self.lm.plain_logits(outputs.ids, _found(outputs))
        without = token_nll(plain, outputs.targets)[real]
        gain = without - token_nll(outputs.logits, outputs.targets)[real]
        shares = {"memory_helped": gain > HELPED, "memory_hurt": gain < -HELPED}
        return {"ce_without_memory": without.mean(), **{name: share.float().mean() for name, share in shares.items()}}

    # What is written

    def learn_step(self, seen: Sequence[Outputs]) -> None:
        """Write to the memories what the batches of a step asked for, the same on every rank."""
        self._counts = {}
        self._warn_of_counts_of_nothing()
        for i, reader in enumerate(self.readers):
            reader_outputs = [_found(outputs).reader_outputs[i] for outputs in seen]
            counts = _written(reader, reader_outputs)
            self._counts |= {f"{self._prefix(i)}_{name}": count for name, count in counts.items()}
            distances = [output.distances for output in reader_outputs if output.distances is not None]
            if reader_outputs:
                reader.follow_step(gathered(torch.cat(distances)) if distances else None)

    def _warn_of_counts_of_nothing(self) -> None:
        """With a step, when a resumed fit has what it counted; once for each reader."""
        for i, reader in enumerate(self.readers if self.freeze else ()):
            if isinstance(reader, NGramReader) and not reader.bank.size() and i not in self._warned_of:
                self._warned_of.add(i)
                rank_zero_warn(
                    "NGramReader has counted nothing, and with freeze: true it never will: start from a fit that has "
                    "counted its training text (--init_from)"
                )

    def after_step(self) -> dict[str, float]:
        return self._counts

    def learned_buffers(self) -> Iterator[Tensor]:
        for reader in self.readers:
            yield from reader.bank.buffers()

    # Evaluations and sessions

    def begin_evaluation(self) -> None:
        self._session_position, self._positions, self._distinct = 0, 0, {}
        for reader in self.readers:
            reader.begin_evaluation()
            if reader.writes != "never":  # a datastore may be large, and stays as it is
                reader.bank.begin_evaluation()

    def after_evaluation_batch(self, outputs: Outputs) -> None:
        self._write_to_copy(_found(outputs))

    def _write_to_copy(self, found: MemoryStates) -> None:
        for reader, output in zip(self.readers, found.reader_outputs, strict=True):
            if output.update is not None:
                reader.bank.write(output.update, training=False)

    def after_validation(self) -> None:
        for reader in self.readers:
            reader.after_validation()

    def _warn_of_few_entries(self) -> None:
        """Once for each reader: a fit has many evaluations."""
        for i, shares in self._distinct.items():
            enough = self._positions * self.readers[i].bank.shared.num_search_results >= EVIDENCE
            if enough and (share := sum(shares) / len(shares)) < FEW and i not in self._warned_of:
                self._warned_of.add(i)
                rank_zero_warn(
                    f"{self._prefix(i)}_distinct is {share:.3f}: the look-ups of a batch return {share:.1%} of the "
                    "entries that they could, nearly the same ones for every text. Queries and entries may lie in "
                    "different places, or the model is not trained yet"
                )

    def end_evaluation(self) -> None:
        self._warn_of_few_entries()
        for reader in self.readers:
            reader.bank.end_evaluation()

    @property
    def adapts(self) -> bool:
        return any(reader.writes != "never" for reader in self.readers)

    @contextmanager
    def counting(self) -> Iterator[bool]:
        readers = [reader for reader in self.readers if reader.reads_tokens and reader.writes == "never"]
        for reader in readers:
            reader.writes = "evaluation"
        try:
            yield bool(readers)
        finally:
            for reader in readers:
                reader.writes = "never"

    @contextmanager
    def _session(self) -> Iterator[None]:
        """Writes go to a copy until this ends, as in an evaluation; within an open session nothing changes."""
        if any(reader.bank.in_evaluation for reader in self.readers):
            yield
            return
        self.begin_evaluation()
        try:
            yield
        finally:
            self.end_evaluation()

    @property
    def texts_share_batches(self) -> bool:
        """False where a session writes, and where each row has its own memory."""
        return all(reader.writes == "never" and reader.scope == "shared" for reader in self.readers)

    def during_generation(self, tokens: Iterator[Tensor], ids: Tensor) -> Iterator[Tensor]:
        """Write the tokens (B, T), and those that are drawn, to the session's copy; hand on each new token (B,)."""
        if all(reader.writes == "never" for reader in self.readers):
            yield from tokens
            return
        written, chunk, lm = 0, self._chunk(), self.lm
        with self._session():
            while True:
                # An entry needs its next token, so the last token waits. Isolated segments are written whole; else the
                # prompt is written at once.
                while (known := ids.shape[1] - 1 - written) >= (chunk if written or lm.context_length else 1):
                    n = chunk if lm.context_length else min(known, lm.max_length or known)
                    self._remember(ids, start=written, n=n)
                    written += n
                token = next(tokens, None)
                if token is None:
                    self._session_position += ids.shape[1]
                    return
                ids = torch.cat([ids, token[:, None]], dim=1)
                yield token

    @torch.no_grad()
    def queries(self, reader: Reader, ids: Sequence[int]) -> Tensor:
        """What a reader searches with behind each of T ids -> (T, M)."""
        inner = self.lm.backbone
        embeddings = inner.embed(torch.tensor([ids], device=self.device))
        if reader.reads_input:
            return reader.queries(embeddings)[0]
        if (layer := reader.layer(len(inner.blocks))) is not None:
            return reader.queries(inner.hidden(embeddings, layers=[layer]).layers[layer])[0]
        states = inner.hidden(embeddings).last
        for earlier in self.readers:
            if earlier is reader:
                break
            states, _ = earlier.at_states(states, TokenContext.of_next_tokens(states))
        return reader.queries(states)[0]

    @property
    def finds(self) -> bool:
        return any(isinstance(reader, PromptReader) for reader in self.readers)

    def found_for(self, prompt: str, tokenizer: Tokenizer) -> list[Found]:
        return [
            found
            for one in self.readers
            if isinstance(one, PromptReader)
            for found in self._nearest(one, prompt, tokenizer)
        ]

    def _nearest(self, reader: PromptReader, prompt: str, tokenizer: Tokenizer) -> list[Found]:
        if not prompt.strip() or not reader.bank.size():
            return []
        ids = tokenizer.prompt(prompt)[-min(reader.query_length, self.lm.max_length or reader.query_length) :]
        passages = reader.nearest(self.queries(reader, ids))
        each = [(reader.text(one, tokenizer), name_of(one.document, self.documents)) for one in passages]
        return [Found(text, document) for text, document in each if text]

    def _chunk(self) -> int:
        """How many tokens a session writes at once. Each write costs a forward over the whole context."""
        return self.lm.context_length or SESSION_CHUNK

    @torch.inference_mode()
    def _remember(self, ids: Tensor, *, start: int, n: int) -> None:
        """Run the model on `n` of (B, T) ids, after the ids before them, and write what its readers ask for."""
        alone = self.lm.context_length is not None
        first = start if alone else max(0, start + n - (self.lm.max_length or start + n))
        seen, at = ids[:, first : start + n], self._session_position + first
        context = TokenContext.of_session(seen, start=at, new=n)
        following = ids[:, first + 1 : start + n + 1]
        known = replace(context.entries, tokens=following)
        self._write_to_copy(self.lm.run(seen, replace(context, entries=known)))

    # What is shown of it, and what a checkpoint has besides tensors

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        for i, reader in enumerate(self.readers):
            for j, memory in enumerate(reader.bank.memories):
                if memory.size():
                    vectors = _stored(memory, draw(memory.size()), tokenizer, self.documents)
                    yield f"backbone.readers.{i}.bank.{j}", vectors

    def own_state(self) -> dict[str, Any]:
        memories = [memory for reader in self.readers for memory in reader.bank.memories]
        held = {key for memory in memories for key in memory.documents[: memory.size()].unique().tolist()}
        return {DOCUMENTS: {key: name for key, name in self.documents.items() if key in held}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.documents |= state.get(DOCUMENTS, {})


class VardaGPT(LanguageModule):
    """Any backbone with a `Memory`.

    Args:
        backbone: the language model: `PretrainedLM`, `Decoder`, or any other.
        readers: see `Memory`; None: `default_reader()`.
        segment_length: see `MemoryLM`.
        isolate_segments: see `MemoryLM`.
        freeze: see `Memory`.
        extensions: further ones; they join before the memory.
        kwargs: see `LanguageModule`.

    Attributes:
        memory: the extension.
    """

    backbone: MemoryLM

    def __init__(
        self,
        backbone: Backbone,
        readers: list[Reader] | None = None,
        segment_length: int | None = None,
        isolate_segments: bool = True,
        freeze: bool = False,
        extensions: list[Extension] | None = None,
        **kwargs: Any,
    ):
        memory = Memory([default_reader()] if readers is None else readers, segment_length, isolate_segments, freeze)
        super().__init__(backbone, extensions=[*(extensions or []), memory], **kwargs)

    @property
    def memory(self) -> Memory:
        memory = self.extensions[-1]
        assert isinstance(memory, Memory)
        return memory

    def config(self) -> dict[str, Any]:
        others = [describe(extension) for extension in self.extensions[:-1]]
        return {**super().config(), "extensions": others, **self.memory.config()}


def default_reader() -> AttentionReader:
    """A learned reader with what docs/memory.md found to pay: a hard budget in place of a price, and entries that carry
    the token that followed. Sizes are the defaults, not those that were measured."""
    return AttentionReader(
        store_cost=None, next_token=True, deletion=False, advanced=AdvancedReader(eviction="lowest_score")
    )


def name_of(key: int, names: Mapping[int, str]) -> str:
    """Where a document is from; `key:...` where only the content is known."""
    return names.get(key, UNKNOWN if key == -1 else f"key:{key:x}")


def memory_of(module: LanguageModule) -> Memory | None:
    """The memory of a module; None where it has none."""
    return next((one for one in module.extensions if isinstance(one, Memory)), None)


def _found(outputs: Outputs) -> MemoryStates:
    assert isinstance(outputs.forward, MemoryStates)
    return outputs.forward


def _written(reader: Reader, outputs: Sequence[ReaderOutput]) -> dict[str, float]:
    """Write what the batches of a step asked for -> counts, by name."""
    shared = reader.scope == "shared"  # batch by batch, and in each rank by rank: as of one large batch
    updates = [
        mapped(gathered, output.update).of_batch(j if shared else 0)  # in the order of the ranks
        for j, output in enumerate(outputs)
        if output.update is not None
    ]
    if not updates:
        return {}
    counts = reader.bank.write(joined(updates), training=True)
    return {**{name: float(count) for name, count in counts.items()}, "entries": float(reader.bank.size())}


def _stored(memory: AssociativeMemory, numbers: Tensor, tokenizer: Tokenizer, names: dict[int, str]) -> Stored:
    """Stored vectors; `names` are those of documents."""
    ids = memory.ids()[numbers.to(memory.device)]
    known = memory.payload(ids)
    fields = (known.spans, known.tokens, known.documents, known.positions)
    rows = [
        [text_of(tokenizer, span), text_of(tokenizer, [token]), names.get(document, f"{document:x}"), str(position)]
        for span, token, document, position in zip(*(field.tolist() for field in fields), strict=True)
    ]
    return Stored(memory[ids], ["text", "next", "document", "position"], rows)
