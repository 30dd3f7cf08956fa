"""Nothing reads what was written from its own future, from an evaluation, or from an earlier copy of what comes next.

Each test has a control: who may read the canary finds it, at distance 0 where it is searched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import (
    AttentionReader,
    CacheReader,
    ConcatReader,
    KNNReader,
    PointerReader,
    TrimeReader,
)
from lightning_app.memory.readers.base import Reader, TokenContext
from lightning_app.memory.readers.learned import AdvancedReader
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.decoder import Decoder
from tests.advice import SHORT, advised
from tests.made_models import learned_pointer

V, D, T, SIZE = 32, 16, 12, 40
OWN, OTHER = 5, 900  # documents

READERS: dict[str, Callable[[], Reader]] = {
    "attention": lambda: AttentionReader(memory_size=SIZE, num_search_results=4),
    "attention, hard": lambda: AttentionReader(
        memory_size=SIZE, num_search_results=4, advanced=AdvancedReader(hard_deletion_after=0)
    ),
    "attention, next tokens": lambda: AttentionReader(
        memory_size=SIZE,
        num_search_results=4,
        next_token=True,
        store_cost=None,
        advanced=AdvancedReader(eviction="lowest_score"),
    ),
    "concat": lambda: ConcatReader(memory_size=SIZE, num_search_results=T),  # all of its block and one more
    "knn": lambda: KNNReader(memory_size=SIZE, num_search_results=4, temperature=1.0),
    "cache": lambda: CacheReader(memory_size=SIZE, lam=0.5, theta=1.0),
    "pointer": lambda: learned_pointer(memory_size=SIZE, lam=0.5, theta=1.0),
    "trime": lambda: TrimeReader(memory_size=SIZE, num_search_results=4),
}
each = pytest.mark.parametrize(
    ("name", "segment_length"), [(name, length) for name in READERS for length in (None, 4)], ids=str
)


def model_with(reader: Reader, segment_length: int | None) -> MemoryLM:
    torch.manual_seed(0)
    backbone = Decoder(vocab_size=V, block_size=T, embedding_dim=D, layers=1, heads=2)
    torch.nn.init.normal_(backbone.transformer["wte"].weight)
    return MemoryLM(backbone, [reader], segment_length=segment_length).eval()


def context_of(ids: Tensor, segment_length: int | None) -> TokenContext:
    B, T = ids.shape
    return TokenContext.of(
        ids=ids,
        next_ids=F.pad(ids[:, 1:], (0, 1), value=-1),
        documents=torch.full_like(ids, OWN),
        positions=torch.arange(100, 100 + T).expand(B, T),
        new=torch.ones_like(ids, dtype=torch.bool),
        rows=torch.arange(B),
        segments=torch.arange(T) // (segment_length or T),
    )


@torch.no_grad()
def run(model: MemoryLM, ids: Tensor) -> Tensor:
    return model.run(ids, context_of(ids, model.segment_length)).logits


@torch.no_grad()
def query(model: MemoryLM, ids: Tensor, t: int) -> Tensor:
    """(1, M) what the reader searches with at position t of the first row."""
    (reader,) = model.readers
    found = model.run(ids, context_of(ids, model.segment_length))
    return reader.queries(model.backbone.embed(ids)[:1, t] if isinstance(reader, ConcatReader) else found.before[:1, t])


def plant(reader: Reader, vectors: Tensor, *, document: int, position: int = 0, token: int = 3) -> Tensor:
    n = len(vectors)
    payload = Entries(torch.full((n,), token), torch.full((n,), document), torch.full((n,), position))
    return reader.bank.shared.add(vectors, payload)


def fill(reader: Reader, n: int = SIZE) -> None:
    plant(reader, torch.randn(n, D, generator=torch.Generator().manual_seed(1)), document=OTHER)


def random_ids() -> Tensor:
    return torch.randint(0, V, (1, T), generator=torch.Generator().manual_seed(2))


@each
@pytest.mark.parametrize("cut", [1, 6, 11])
def test_later_tokens_change_no_earlier_logit(name: str, segment_length: int | None, cut: int):
    model = model_with(READERS[name](), segment_length)
    fill(model.readers[0])
    ids = random_ids()
    other = torch.cat([ids[:, :cut], (ids[:, cut:] + 7) % V], dim=1)
    one, two = run(model, ids), run(model, other)
    assert torch.allclose(one[:, :cut], two[:, :cut], atol=1e-5)
    assert not torch.allclose(one[:, cut:], two[:, cut:], atol=1e-2)


@each
def test_an_entry_of_the_own_document_is_read_only_behind_its_position(name: str, segment_length: int | None):
    """The entry is what position 6 searches for, as an earlier epoch would have left it there, or one before."""
    model = model_with(READERS[name](), segment_length)
    (reader,) = model.readers
    ids, t = random_ids(), 6
    canary = query(model, ids, t)
    without = run(model, ids)
    (present,) = plant(reader, canary, document=OWN, position=100 + t).tolist()
    hidden = run(model, ids)
    assert torch.allclose(hidden[:, : t + 1], without[:, : t + 1], atol=1e-5)
    assert not torch.allclose(hidden[:, t + 1 :], without[:, t + 1 :], atol=1e-5)
    reader.bank.shared.remove(torch.tensor([present]))
    (past,) = plant(reader, canary, document=OWN, position=100 + t - 1).tolist()
    seen = run(model, ids)
    assert torch.allclose(seen[:, :t], without[:, :t], atol=1e-5)
    assert not torch.allclose(seen[:, t], without[:, t], atol=1e-5)
    if not isinstance(reader, CacheReader | PointerReader | TrimeReader):  # by distance
        context = context_of(ids, segment_length)
        found, distances = reader.bank.search(query(model, ids, t)[None].expand(1, T, D), context.rows, context.entries)
        assert (found[0, :t, 0] == -1).all()
        assert found[0, t, 0] == past
        assert distances[0, t, 0] == pytest.approx(0, abs=1e-4)


# Through Lightning


def varda() -> VardaGPT:
    torch.manual_seed(0)
    reader = AttentionReader(memory_size=2000, num_search_results=5, forgetfulness_factor=0.0)
    backbone = Decoder(vocab_size=257, block_size=16, embedding_dim=D, layers=1, heads=2)
    return VardaGPT(backbone, [reader], segment_length=8, isolate_segments=False)


def trainer_with(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **options,
    )


def digest(memory: AssociativeMemory) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in memory.state_dict().values())).hexdigest()


def documents_in(memory: AssociativeMemory) -> set[int]:
    return set(memory.documents[: memory.size()].tolist())


class Watch(L.Callback):
    """What can be read while training and while validating, and the training memory around each evaluation."""

    def __init__(self) -> None:
        self.training: set[int] = set()
        self.validating: set[int] = set()
        self.canary: list[float] = []
        self.before = self.after = ""
        self.evaluations = 0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.training |= documents_in(module.backbone.readers[0].bank.shared)

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        self.before = digest(module.backbone.readers[0].bank.memories[0])

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        memory = module.backbone.readers[0].bank.shared
        last = memory.ids()[-1:]
        self.validating |= documents_in(memory)
        self.canary.append(float(memory.search(memory[last], 1)[1]))
        assert digest(memory) != self.before

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        assert digest(module.backbone.readers[0].bank.memories[0]) == self.before
        assert not module.backbone.readers[0].bank.in_evaluation
        self.evaluations += 1

    on_test_start, on_test_batch_end, on_test_end = on_validation_start, on_validation_batch_end, on_validation_end


def test_training_reads_nothing_of_an_evaluation_which_changes_nothing(folder: Path):
    data = TextDataModule(train=Source("train.txt"), val=Source("val.txt"), test=Source("val.txt"), block_size=16)
    module, watch = varda(), Watch()
    trainer = trainer_with(watch, max_steps=6, val_check_interval=2, check_val_every_n_epoch=None)
    with advised(SHORT):
        trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert watch.evaluations >= 4
    (train,) = {int(key) for key in next(iter(data.train_dataloader())).document_keys.unique()}
    (val,) = {int(key) for key in next(iter(data.val_dataloader())).document_keys.unique()}
    assert watch.training == {train}
    assert watch.validating == {train, val}
    assert watch.canary == pytest.approx([0] * len(watch.canary), abs=1e-5)
    assert documents_in(module.backbone.readers[0].bank.shared) == {train}


class Searches:
    """Stands for a bank's search, and counts what was found and what was there but hidden, by epoch's copies."""

    def __init__(self, reader: Reader) -> None:
        self.bank, self.search = reader.bank, reader.bank.search
        self.earlier = self.later = self.hidden = 0

    def __call__(self, queries: Tensor, rows: Tensor, origin: Any, k: int | None = None) -> tuple[Tensor, Tensor]:
        ids, distances = self.search(queries, rows, origin, k)
        found = self.bank.shared.payload(ids)
        own = (found.documents == origin.documents[..., None]) & (ids >= 0)
        later = found.positions >= origin.positions[..., None]
        self.earlier += int((own & ~later).sum())
        self.later += int((own & later).sum())
        stored = self.bank.shared.positions[: self.bank.size()]
        self.hidden += int((stored >= origin.positions[..., None]).sum())
        return ids, distances


@pytest.mark.parametrize("order", ["windows", "streams"])
def test_training_reads_no_copy_of_what_comes_next_in_any_epoch(folder: Path, order: Any, monkeypatch: Any):
    """A second epoch, and in streams the other rows, leave entries of one document at all of its positions."""
    data = TextDataModule(train=Source("train.txt"), block_size=16, order=order)
    module = varda()
    (reader,) = module.backbone.readers
    searches = Searches(reader)
    monkeypatch.setattr(reader.bank, "search", searches)
    with advised(SHORT):
        trainer_with(max_epochs=2, limit_train_batches=8, limit_val_batches=0).fit(module, datamodule=data)
    assert searches.hidden > 1000
    assert searches.earlier > 100
    assert searches.later == 0


def test_a_document_has_one_key_in_whatever_file_it_is(folder: Path):
    text = Path("train.txt").read_text()
    Path("copy").mkdir()
    Path("copy/a.txt").write_text(text)
    Path("copy/b.txt").write_text(text[:-20] + "another end")
    (one,), both = keys_of("train.txt"), keys_of("copy")
    assert len(both) == 2
    assert one in both


def keys_of(path: str) -> set[int]:
    data = TextDataModule(train=Source(path), block_size=16)
    data.prepare_data()
    data.setup("fit")
    return {int(key) for batch in data.train_dataloader() for key in batch.document_keys.unique()} - {-1}


def test_the_scope_document_forgets_a_document_at_its_end():
    model = model_with(AttentionReader(memory_size=SIZE, scope="document", streams=2), 4)
    (reader,) = model.readers
    bank = reader.bank
    ids = random_ids()
    first = context_of(ids, 4)
    everything = torch.ones_like(ids, dtype=torch.bool)
    vectors = torch.randn(1, T, D)
    bank.write(first.update_of(vectors, everything), training=True)
    later = replace(first.entries, positions=first.entries.positions + T)
    assert bank.search(vectors, first.rows, later, k=1)[1].abs().max() < 1e-4  # the same document: found
    others = replace(first, entries=replace(first.entries, documents=torch.full_like(ids, OTHER)))
    assert (bank.search(vectors, first.rows, others.entries, k=1)[0] == -1).all()
    bank.write(others.update_of(vectors, everything), training=True)
    assert documents_in(bank.memories[0]) == {OTHER}
    assert bank.memories[1].size() == 0
