"""The four layers of a writer, and what deletions leave within a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.readers.concat import ConcatReader
from lightning_app.memory.readers.learned import AdvancedReader, LearnedReader
from lightning_app.memory.readers.writer import (
    Writer,
    alive,
    entry_numbers,
    squared_distances,
    straight_through,
)
from lightning_app.models.decoder import Decoder

LAYERS = ("fc_storable_vector", "fc_store_decision", "fc_delete_decision", "fc_deletable_vector")


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    ("make", "isolated"), [(AttentionReader, True), (AttentionReader, False), (ConcatReader, True)]
)
def test_cross_entropy_alone_reaches_each_row_of_the_four_layers(
    make: Callable[..., LearnedReader], isolated: bool, hard: bool
):
    torch.manual_seed(0)
    after = 0 if hard else 100
    reader = make(
        memory_size=20,
        memory_dim=24,
        store_cost=0.0,
        num_search_results=4,
        advanced=AdvancedReader(hard_deletion_after=after),
    )
    backbone = Decoder(vocab_size=32, block_size=16, embedding_dim=16, layers=1, heads=2)
    torch.nn.init.normal_(backbone.transformer["wte"].weight)  # so that positions search for different entries
    model = MemoryLM(backbone, [reader], segment_length=4, isolate_segments=isolated)
    ids = torch.randint(0, 32, (4, 16))
    context = replace(TokenContext.of_session(ids, start=0, new=16), segments=torch.arange(16) // 4)
    first = model.run(ids, context).reader_outputs[0]
    reader.follow_step(first.distances)
    assert reader.threshold.value.isfinite()
    found = model.run(ids, context)
    assert all(weight == 0 for weight, _ in found.reader_outputs[0].terms.values())
    F.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name in LAYERS:
        gradient = getattr(reader.writer, name).weight.grad
        assert (gradient.abs().amax(-1) > 0).float().mean() >= 0.95, name


def test_a_new_writer_is_open_and_deletes_nothing():
    torch.manual_seed(0)
    decisions = Writer(8, 6, 3)(torch.randn(2, 5, 8) * 0.1)
    assert decisions.stored.all()
    assert (decisions.delete < 0).all()
    assert [decisions.vectors.shape[-1], decisions.delete.shape[-1], decisions.deletable.shape[-1]] == [6, 3, 6]


def test_a_straight_through_value_is_hard_and_has_the_gradient_of_the_probability():
    p = torch.tensor([0.2, 0.7], requires_grad=True)
    hard = straight_through(p, p > 0.5)
    assert hard.tolist() == [0.0, 1.0]
    (2 * hard).sum().backward()
    assert p.grad is not None
    assert p.grad.tolist() == [2.0, 2.0]


def test_squared_distances_are_those_to_what_was_found_and_to_the_own_block():
    queries, found, own = torch.randn(2, 3, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4)
    by_hand = torch.cat([(queries[:, :, None] - found), (queries[:, :, None] - own[:, None])], dim=2).square().sum(-1)
    assert torch.allclose(squared_distances(queries, found, own), by_hand, atol=1e-4)


def test_an_entry_has_one_number_wherever_it_was_found():
    ids = torch.tensor([[[7, 3], [3, -1]]])
    numbers, n = entry_numbers(ids)
    assert n == 3 + 2
    assert numbers[0, 0, 1] == numbers[0, 1, 0] != numbers[0, 0, 0]
    assert numbers[0, :, 2:].tolist() == [[3, 4], [3, 4]]


DELETE = torch.tensor([[[0.2], [0.6], [0.5], [0.0]]])  # positions 0, 1 of segment 0; 2 of 1; 3 of 2
CHOSEN = torch.tensor([[[0], [0], [1], [0]]])
SEGMENTS = torch.tensor([0, 0, 1, 2])


def test_deletions_weaken_what_later_segments_see():
    left = alive(DELETE, CHOSEN, SEGMENTS, n_entries=3)[0]
    expected = [[1, 1, 1], [0.8 * 0.4, 1, 1], [0.32, 0.5, 1], [0.32, 0.5, 1]]
    assert torch.allclose(left, torch.tensor(expected), atol=1e-5)


def test_hard_deletions_are_all_or_nothing_with_the_gradient_of_soft_ones():
    delete = DELETE.clone().requires_grad_()
    left = alive(delete, CHOSEN, SEGMENTS, n_entries=3, decided=delete > 0.5)[0]
    assert left.tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]]  # 0.5 is not over 0.5
    (gradient,) = torch.autograd.grad(left[3].sum(), delete)
    assert torch.allclose(gradient.flatten(), torch.tensor([-0.4, -0.8, -1.0, -0.32]), atol=1e-4)
