"""What a reader is told of the tokens of a forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import ReaderOutput, TokenContext, merged
from lightning_app.models.decoder import Decoder


def context() -> TokenContext:
    """Tokens 10 to 15, the last two of another document, in segments of 3."""
    whole = TokenContext.of_session(torch.arange(10, 16)[None], start=5, new=2)
    return replace(
        whole,
        entries=replace(whole.entries, documents=torch.tensor([[1, 1, 1, 1, 2, 2]])),
        segments=torch.arange(6) // 3,
    )


def test_a_session_knows_positions_next_tokens_and_what_is_new():
    session = TokenContext.of_session(torch.arange(10, 16)[None], start=5, new=2)
    assert session.entries.positions.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert session.entries.tokens.tolist() == [[11, 12, 13, 14, 15, -1]]
    assert session.new.tolist() == [[False] * 4 + [True] * 2]


def test_only_earlier_segments_or_positions_are_readable():
    by_segment = context().earlier(by_segment=True)[0]
    assert by_segment.sum(-1).tolist() == [0, 0, 0, 3, 3, 3]
    assert not by_segment.triu().any()
    assert context().earlier(by_segment=False)[0].sum(-1).tolist() == [0, 1, 2, 3, 4, 5]
    own = context().earlier(by_segment=False, own_document_only=True)[0]
    assert own.sum(-1).tolist() == [0, 1, 2, 3, 0, 1]


def test_effects_hold_what_was_chosen_with_its_text():
    vectors = torch.randn(1, 6, 4, requires_grad=True)
    found = context().update_of(vectors, torch.tensor([[True, False, False, False, True, False]]), span_length=3)
    assert torch.equal(found.entries.vectors, vectors[0, [0, 4]])
    assert not found.entries.vectors.requires_grad
    assert found.entries.tokens.tolist() == [11, 15]
    assert found.entries.documents.tolist() == [1, 2]
    assert found.entries.positions.tolist() == [5, 9]
    assert found.entries.spans.tolist() == [[-1, -1, 10], [12, 13, 14]]


def test_readings_of_one_reader_are_averaged_and_their_effects_joined():
    chosen = torch.ones(1, 6, dtype=torch.bool)
    update = context().update_of(torch.randn(1, 6, 4), chosen)
    one = ReaderOutput({"a": (0.5, torch.tensor(1.0))}, {"s": torch.tensor(2.0)}, update)
    two = ReaderOutput({"a": (0.5, torch.tensor(3.0))}, {"r": torch.tensor(4.0)}, update)
    found = merged([one, two])
    assert found.terms == {"a": (0.5, torch.tensor(2.0))}
    assert found.statistics == {"s": torch.tensor(2.0), "r": torch.tensor(4.0)}
    assert found.update is not None
    assert len(found.update.rows) == 12
    assert merged([ReaderOutput()]).update is None


def test_a_reader_belongs_to_one_model():
    reader, backbone = (
        AttentionReader(memory_size=5),
        Decoder(vocab_size=10, block_size=8, embedding_dim=8, layers=1, heads=2),
    )
    MemoryLM(backbone, [reader])
    with pytest.raises(InputError, match="a reader belongs to one model"):
        MemoryLM(backbone, [reader])


@pytest.mark.parametrize(
    ("writes", "training", "evaluating"), [("always", True, True), ("evaluation", False, True), ("never", False, False)]
)
def test_when_a_reader_writes(writes: str, training: bool, evaluating: bool):
    reader = AttentionReader(writes=writes)
    assert (reader.train().writes_now(), reader.eval().writes_now()) == (training, evaluating)
