"""VardaGPT: a language model that reads from an associative memory and learns what to store in it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.memory.model import MemoryLM, MemoryStates
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.bank import MemoryBank, MemoryUpdate
from lightning_app.memory.readers.base import Reader, ReaderOutput, TokenContext
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.backbone import Backbone, HiddenStates
from lightning_app.models.generation import GenerationOptions, generate
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.models.ranks import gathered
from lightning_app.models.weighing import Over
from lightning_app.training.module import Batch, LanguageModule, Outputs
from lightning_app.training.stored import Draw, Stored, text_of

DOCUMENTS = "documents"  # in a checkpoint: source by content key of each document that a memory holds
SESSION_CHUNK = 16  # tokens
HELPED = 0.01  # nats: a token counts as helped or hurt by the memory beyond this


@dataclass(frozen=True)
class MemoryOutputs(Outputs):
    """Outputs of a model with a memory.

    Attributes:
        found: what the backbone and the readers computed.
    """

    found: MemoryStates

    @property
    def own_states(self) -> HiddenStates:
        return HiddenStates(self.found.before, self.states.layers)

    def detached(self) -> MemoryOutputs:
        """Without the graph; of the readings only what is learned from is left."""
        outputs = super().detached()
        assert isinstance(outputs, MemoryOutputs)
        readings = [
            ReaderOutput(effects=reading.effects, distances=reading.distances) for reading in self.found.readings
        ]
        found = MemoryStates(outputs.states, outputs.logits, self.found.before.detach(), readings)
        return replace(outputs, found=found)


class VardaGPT(LanguageModule):
    """Any backbone with readers of associative memories (`models.readers`).

    What a training step would write is queued, and written once the optimizer has stepped. Validation, test, prediction
    and generation write to a copy, which is forgotten at their end.

    Args:
        backbone: the language model: `PretrainedLM`, `Decoder`, or any other.
        readers: of memories, in the order in which they change states and logits; None: an `AttentionReader`.
        segment_length: see `MemoryLM`.
        isolate_segments: see `MemoryLM`.
        kwargs: see `LanguageModule`.

    Attributes:
        documents: where documents came from, by content key; a checkpoint keeps those that a memory holds.
    """

    backbone: MemoryLM

    def __init__(
        self,
        backbone: Backbone,
        readers: list[Reader] | None = None,
        segment_length: int | None = None,
        isolate_segments: bool = True,
        **kwargs: Any,
    ):
        readers = [AttentionReader()] if readers is None else readers
        super().__init__(MemoryLM(backbone, readers, segment_length, isolate_segments), **kwargs)
        self._first_row = 0
        self._session_position = 0
        self.documents: dict[int, str] = {}

    @property
    def model_of_states(self) -> Backbone:
        return MemoryLM(self.backbone.backbone, [], self.backbone.segment_length, self.backbone.isolate_segments)

    # What is computed

    def passage(self, batch: Batch) -> TokenContext:
        """Where the tokens of a batch are from; those that are scored are the new ones."""
        ids, targets, mask = batch["input_ids"], batch["targets"], batch["attention_mask"]
        following = torch.nn.functional.pad(ids[:, 1:].where(mask[:, 1:], -1), (0, 1), value=-1)
        T, length = ids.shape[1], self.backbone.segment_length or ids.shape[1]
        return TokenContext(
            ids=ids,
            next_ids=targets.where(targets != IGNORE, following),
            documents=batch["document_keys"],
            positions=batch["positions"],
            new=mask & (targets != IGNORE),
            rows=self._first_row + torch.arange(len(ids), device=ids.device),
            segments=torch.arange(T, device=ids.device) // length,
        )

    def outputs(self, batch: Batch) -> MemoryOutputs:
        ids = batch["input_ids"]
        layers = sorted({layer for r in self.regularizers for layer in r.layers})
        found = self.backbone.run(self._add_noise(ids) if self.training else ids, self.passage(batch), layers=layers)
        mask, documents = batch["attention_mask"], batch["document_ids"]
        return MemoryOutputs(ids, batch["targets"], mask, documents, found.states, found.logits, found)

    def loss_terms(self, outputs: Outputs) -> dict[str, tuple[float, Tensor]]:
        """Cross-entropy, the regularisers' terms, and those of the memory."""
        assert isinstance(outputs, MemoryOutputs)
        readings = outputs.found.readings
        terms = super().loss_terms(outputs)
        for i, reading in enumerate(readings):
            terms |= {f"{_prefix(i, readings)}_{name}": term for name, term in reading.terms.items()}
        return terms

    @property
    def means_over(self) -> dict[str, Over]:
        readers = self.backbone.readers
        of_readers = {
            f"{_prefix(i, readers)}_{name}": over
            for i, reader in enumerate(readers)
            for name, over in reader.means_over.items()
        }
        return super().means_over | of_readers

    def look_back(self, outputs: Outputs, stage: str) -> None:
        """Log what the readers did; an evaluation writes to its copy at once, training once the step is done."""
        super().look_back(outputs, stage)
        assert isinstance(outputs, MemoryOutputs)
        n = max(1, int((outputs.targets != IGNORE).sum()))
        if stage == "train":
            self.log_dict({f"train/{name}": value for name, value in _statistics(outputs).items()})
            return
        if stage != "predict":
            measured = {
                f"{stage}/{name}": value for name, value in {**_statistics(outputs), **self._help(outputs)}.items()
            }
            self.log_dict(measured, on_epoch=True, batch_size=n, sync_dist=True)
        self._write_to_copy(outputs.found)

    @torch.no_grad()
    def _help(self, outputs: MemoryOutputs) -> dict[str, Tensor]:
        """Shares of the tokens that the memory made likelier and less likely by more than `HELPED` nats."""
        real = outputs.targets != IGNORE
        plain = self.backbone.plain_logits(outputs.ids, outputs.found)
        without = token_nll(plain, outputs.targets)[real]
        gain = without - token_nll(outputs.logits, outputs.targets)[real]
        shares = {"memory_helped": gain > HELPED, "memory_hurt": gain < -HELPED}
        return {"ce_without_memory": without.mean(), **{name: share.float().mean() for name, share in shares.items()}}

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        for name, bank in self.named_modules():
            for i, memory in enumerate(bank.memories if isinstance(bank, MemoryBank) else []):
                if memory.size():
                    yield f"{name}.{i}", _stored(memory, draw(memory.size()), tokenizer, self.documents)
        yield from super().stored(draw, tokenizer)

    # What is written

    @property
    def learns(self) -> bool:
        return True

    def buffers_equal_on_all_ranks(self) -> list[str]:
        return [*super().buffers_equal_on_all_ranks(), *(name for name, _ in self.named_buffers() if ".bank." in name)]

    def learn(self, seen: Sequence[Outputs]) -> None:
        """Write to the memories what the batches of a step asked for, the same on every rank."""
        super().learn(seen)
        for i, reader in enumerate(self.backbone.readers):
            readings = [outputs.found.readings[i] for outputs in seen if isinstance(outputs, MemoryOutputs)]
            shared = reader.scope == "shared"  # batch by batch, and in each rank by rank: as of one large batch
            effects = [
                _gathered(reading.effects).of_batch(j if shared else 0)
                for j, reading in enumerate(readings)
                if reading.effects is not None
            ]
            if effects:
                counts = reader.bank.carry_out(MemoryUpdate.joined(effects), training=True)
                prefix = _prefix(i, self.backbone.readers)
                self.learned |= {f"{prefix}_{name}": float(count) for name, count in counts.items()}
                self.learned[f"{prefix}_entries"] = float(reader.bank.size())
            distances = [reading.distances for reading in readings if reading.distances is not None]
            if readings:
                reader.after_step(gathered(torch.cat(distances)) if distances else None)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Within it `generate` remembers what it saw and wrote before; at its end that is forgotten."""
        self._begin_evaluation()
        try:
            yield
        finally:
            self._end_evaluation()

    def _begin_evaluation(self) -> None:
        self._session_position = 0
        for reader in self.backbone.readers:
            if reader.writes != "never":  # a datastore may be large, and stays as it is
                reader.bank.begin_evaluation()

    def _end_evaluation(self) -> None:
        for reader in self.backbone.readers:
            reader.bank.end_evaluation()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._begin_evaluation()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._end_evaluation()

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._end_evaluation()

    def on_predict_end(self) -> None:
        self._end_evaluation()

    def generate(
        self, ids: Tensor, options: GenerationOptions | None = None, *, eot: int | None = None
    ) -> Generator[Tensor, None, None]:
        """See `models.generation.generate`. What is old goes to the memory: in the open session or one of its own."""
        if any(reader.bank.in_evaluation for reader in self.backbone.readers):
            yield from self._generate(ids, options, eot=eot)
            return
        with self.session():
            yield from self._generate(ids, options, eot=eot)

    @property
    def texts_share_batches(self) -> bool:
        """Not where a session writes, nor where each row has a memory of its own."""
        return all(reader.writes == "never" and reader.scope == "shared" for reader in self.backbone.readers)

    def _generate(
        self, ids: Tensor, options: GenerationOptions | None, *, eot: int | None
    ) -> Generator[Tensor, None, None]:
        written, chunk = 0, self._chunk()
        tokens = generate(self.backbone, ids, options, vocab_size=self._real_ids, eot=eot)
        while True:
            # The last token's next one is not known. Whole segments where they are isolated; else the prompt at once.
            while (known := ids.shape[1] - 1 - written) >= (chunk if written or self.backbone.context_length else 1):
                n = chunk if self.backbone.context_length else min(known, self.backbone.max_length or known)
                self._remember(ids, start=written, n=n)
                written += n
            token = next(tokens, None)
            if token is None:
                self._session_position += ids.shape[1]
                return
            ids = torch.cat([ids, token[:, None]], dim=1)
            yield token

    def _chunk(self) -> int:
        """Tokens that a session writes at once: a segment, or few, as each time costs a forward over the context."""
        return self.backbone.context_length or SESSION_CHUNK

    @torch.inference_mode()
    def _remember(self, ids: Tensor, *, start: int, n: int) -> None:
        """Write what the readers want of `n` tokens of (B, T) ids, seen with the context before them."""
        alone = self.backbone.context_length is not None
        first = start if alone else max(0, start + n - (self.backbone.max_length or start + n))
        seen, at = ids[:, first : start + n], self._session_position + first
        passage = TokenContext.of_session(seen, start=at, new=n)
        following = ids[:, first + 1 : start + n + 1]
        found = self.backbone.run(seen, replace(passage, next_ids=following))
        self._write_to_copy(found)

    def _write_to_copy(self, found: MemoryStates) -> None:
        """Of an evaluation or a session, at once."""
        for reader, reading in zip(self.backbone.readers, found.readings, strict=True):
            if reading.effects is not None:
                reader.bank.carry_out(reading.effects, training=False)

    # Frame

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        if isinstance(data, TextDataModule):
            self._first_row = self.trainer.global_rank * data.dataloader.batch_size
            if stage == "fit":
                self._warn_if_nothing_learns_to_store(data.block_size)
            if stage == "fit" and not data.streamed("train"):
                text = data.tokens("train")
                keys = text.keys_of(np.arange(text.n_documents)).tolist()
                self.documents |= dict(zip(keys, text.names, strict=True))
        if self.compiles:
            inner = self.backbone.backbone
            inner.hidden = torch.compile(inner.hidden)  # type: ignore[method-assign]

    def _warn_if_nothing_learns_to_store(self, block_size: int) -> None:
        if any(reader.by_segment for reader in self.backbone.readers) and (
            self.backbone.segment_length is None or self.backbone.segment_length >= block_size
        ):
            rank_zero_warn(
                f"segment_length is {self.backbone.segment_length} and data.block_size {block_size}: the block is one "
                "segment, so cross-entropy cannot teach what to store; give a segment_length below block_size"
            )

    @property
    def longest_block(self) -> int | None:
        return self.backbone.backbone.max_length if self.backbone.context_length is None else None

    def config(self) -> dict[str, Any]:
        return {**super().config(), **self.backbone.config()}

    def own_state(self) -> dict[str, Any]:
        memories = [memory for reader in self.backbone.readers for memory in reader.bank.memories]
        held = {key for memory in memories for key in memory.documents[: memory.size()].unique().tolist()}
        return super().own_state() | {DOCUMENTS: {key: name for key, name in self.documents.items() if key in held}}

    def load_own_state(self, state: dict[str, Any], *, resumes: bool) -> None:
        super().load_own_state(state, resumes=resumes)
        self.documents |= state.get(DOCUMENTS, {})


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


def _prefix(i: int, of: Sequence[object]) -> str:
    return "memory" if len(of) == 1 else f"memory{i}"


def _statistics(outputs: MemoryOutputs) -> dict[str, Tensor]:
    """Those of all readers, by the name they are logged under: in every batch the same, as ranks log together."""
    readings = outputs.found.readings
    return {
        f"{_prefix(i, readings)}_{name}": value
        for i, reading in enumerate(readings)
        for name, value in reading.statistics.items()
    }


def _gathered(effects: MemoryUpdate) -> MemoryUpdate:
    """Those of all ranks, in the order of the ranks."""
    return MemoryUpdate(**{name: gathered(tensor) for name, tensor in effects.tensors().items()})
