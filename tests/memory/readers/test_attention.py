"""AttentionReader against its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.slots import Entries

D, T, L = 8, 6, 3
BY_SCORE = {"eviction": "lowest_score", "fading": 0.0, "store_free_steps": 1}


def reader_with(**options: object) -> AttentionReader:
    torch.manual_seed(0)
    reader = AttentionReader(
        **options_of_today({"memory_size": 10, "num_search_results": 2, **options}, "AttentionReader")
    )
    reader.build(width=D, vocab_size=20)
    return reader.eval()


def context() -> TokenContext:
    session = TokenContext.of_session(torch.arange(T)[None], start=0, new=T)
    return replace(session, segments=torch.arange(T) // L)


def by_hand(reader: AttentionReader, states: Tensor) -> Tensor:
    """Position by position: all that is stored, then what earlier segments would store; nothing is deleted."""
    decisions, known = reader.writer(states), reader.bank.shared.get_all_embeddings()
    assert len(known) <= 2
    read = torch.zeros(T, D)
    for t in range(T):
        query = F.normalize(reader.fc_query(states[0, t]), dim=-1)
        written = [decisions.vectors[0, j] for j in range(t // L * L) if decisions.store[0, j] > 0.5]
        entries = torch.stack([*known, *written]) if len(known) + len(written) else torch.zeros(0, D)
        scores = reader.scale * F.cosine_similarity(query[None], entries, dim=-1)
        weights = torch.cat([scores, reader.null[None]]).softmax(0)[:-1]
        read[t] = weights @ entries
    return states + reader.fc_read(read)


@pytest.mark.parametrize("stored", [0, 2])
@torch.no_grad()
def test_it_is_attention_over_the_memory_earlier_segments_and_nothing(stored: int):
    reader = reader_with(deletion=False)
    reader.null.fill_(3.0)
    reader.writer.fc_store_decision.bias.zero_()  # so that some are stored
    states = torch.randn(1, T, D)
    assert 0 < reader.writer(states).stored[0, :L].sum() < L
    reader.bank.shared.add(torch.randn(stored, D))
    found, output = reader.at_states(states, context())
    assert torch.allclose(found, by_hand(reader, states), atol=1e-4)
    assert output.update is not None
    assert torch.equal(output.update.entries.vectors, reader.writer(states).vectors[reader.writer(states).stored])


@torch.no_grad()
def test_what_followed_is_read_in_float32_whatever_the_default():
    """In 64-true the default is float64, and so is the backbone."""
    reader = reader_with(next_token=True, deletion=False).double()
    table = torch.randn(20, D, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        states, _ = reader.at_states(torch.randn(1, T, D), replace(context(), embed=lambda ids: table[ids]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert states.dtype == torch.float64


@torch.no_grad()
def test_it_reads_the_tokens_that_followed_what_it_reads():
    """Of stored entries and of earlier segments, by their embeddings, which are as long as a normalised state."""
    reader = reader_with(next_token=True, deletion=False)
    reader.fc_next.weight.normal_()
    table, states = torch.randn(20, D), torch.randn(1, T, D)
    assert reader.writer(states).stored.all()
    reader.bank.shared.add(torch.randn(2, D), Entries(tokens=torch.tensor([7, -1])))
    found, _ = reader.at_states(states, replace(context(), embed=table.__getitem__))
    followers = torch.cat([F.normalize(table[[7]], dim=-1), torch.zeros(1, D), F.normalize(table[1 : L + 1], dim=-1)])
    values = torch.cat([reader.bank.shared.get_all_embeddings(), reader.writer(states).vectors[0, :L]])
    scores = reader.scale * F.cosine_similarity(reader.fc_query(states[0, L])[None], values, dim=-1)
    weights = torch.cat([scores, reader.null[None]]).softmax(0)[:-1]
    read = weights @ values + D**0.5 * reader.fc_next(weights @ followers)
    torch.testing.assert_close(found[0, L], states[0, L] + reader.fc_read(read), rtol=1e-4, atol=1e-4)


def test_with_a_hard_budget_training_stores_the_best_share_and_the_score_is_taught():
    reader = reader_with(store_cost=None, deletion=False, advanced=BY_SCORE, memory_size=4).train()
    states, shares = torch.randn(1, 64, D), []
    session = TokenContext.of_session(torch.arange(64)[None] % 20, start=0, new=64)
    some = replace(session, segments=torch.arange(64) // 16)
    assert reader.at_states(states, some)[1].statistics["store_rate"] == 1  # it learns to read first
    reader.follow_step(None)
    for _ in range(6):
        found, output = reader.at_states(states, some)
        assert output.update is not None
        stored, score = output.update.entries, reader.writer(states).score[0]
        assert stored.strengths.min() == score.topk(len(stored.strengths)).values[-1]  # the best ones
        shares.append(len(stored.strengths) / 64)
        reader.follow_step(None)
    assert len(set(shares)) == 6
    assert 1 / 16 <= min(shares) < 0.3 < 0.7 < max(shares) <= 1
    found.square().mean().backward()
    assert reader.writer.fc_store_decision.weight.grad is not None
    assert reader.writer.fc_store_decision.weight.grad.any()
    weight, _ = output.terms["store"]
    assert weight == 0
    assert AttentionReader(**reader.config()).store_cost is None


@torch.no_grad()
def test_with_a_hard_budget_an_evaluation_offers_everything_and_the_memory_keeps_the_best():
    reader = reader_with(store_cost=None, deletion=False, advanced=BY_SCORE, memory_size=4)
    reader.writer.fc_store_decision.bias.fill_(-9.0)  # by a price nothing would be stored
    states = torch.randn(1, T, D)
    update = reader.at_states(states, context())[1].update
    assert update is not None
    assert len(update.rows) == T
    reader.bank.write(update, training=False)
    best = reader.writer(states).score[0].topk(4).indices.sort().values
    torch.testing.assert_close(reader.bank.shared.get_all_embeddings(), reader.writer(states).vectors[0, best])


def test_a_share_of_what_is_all_stored_is_refused():
    with pytest.raises(InputError, match=r"target_rate is 0.1 and store_cost null"):
        AttentionReader(store_cost=None, target_rate=0.1)


def test_with_a_start_of_0_it_changes_nothing_until_it_has_learned():
    reader = reader_with(start=0.0)
    assert AttentionReader(**reader.config()).start == 0
    with pytest.raises(InputError, match=r"start is 1.5; .*start from 0 to 1"):
        AttentionReader(start=1.5)
    optimizer = torch.optim.SGD(reader.parameters(), lr=0.1)
    states, target = torch.randn(1, T, D), torch.randn(1, T, D)
    learned = set()
    for step in range(2):
        found, _ = reader.at_states(states, context())
        assert torch.equal(found, states) == (step == 0)
        optimizer.zero_grad()
        (found - target).square().mean().backward()
        learned |= {name for name, p in reader.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert {"fc_read.weight", "fc_query.weight", "writer.fc_storable_vector.weight", "null"} <= learned


@torch.no_grad()
def test_what_a_segment_deletes_later_ones_do_not_read_and_the_memory_loses():
    """Position 1 speaks of all results; nearer than the threshold is the first entry alone."""
    reader = reader_with(hard_deletion_after=0)
    states = torch.randn(1, T, D)
    reader.writer.fc_store_decision.bias.fill_(-9.0)
    near = reader.writer(states).deletable[0, 1]
    ids = reader.bank.shared.add(torch.stack([near, near + 50]), Entries(documents=torch.tensor([1, 1])))
    whole, output = reader.at_states(states, context())
    assert output.update is not None
    assert not len(output.update.removed)
    reader.writer.fc_delete_decision.bias.fill_(9.0)
    reader.threshold.value.fill_(1e-2)
    found, output = reader.at_states(states, context())
    assert output.update is not None
    assert output.update.removed.tolist() == [[0, int(ids[0])]]
    assert torch.allclose(found[:, :L], whole[:, :L], atol=1e-6)  # its own segment still reads it
    reader.bank.write(output.update, training=False)
    assert reader.bank.shared.ids().tolist() == [int(ids[1])]
    gone, _ = reader.at_states(states, context())
    assert torch.allclose(found[:, L:], gone[:, L:], atol=1e-5)
    assert not torch.allclose(found[:, L:], whole[:, L:], atol=1e-3)


def test_the_cost_of_storing_rises_after_its_free_steps():
    reader = reader_with(store_cost=0.1, store_free_steps=2, store_rise_steps=4, target_rate=0.25, budget_weight=3.0)
    states, weights = torch.randn(1, T, D), []
    for _ in range(8):
        terms = reader.at_states(states, context())[1].terms
        weights.append(terms["store"][0])
        reader.follow_step(None)
    assert weights == pytest.approx([0, 0, 0, 0.025, 0.05, 0.075, 0.1, 0.1])
    mean = reader.writer(states).store.mean()
    assert terms["store"][1].item() == pytest.approx(mean.item())
    assert terms["budget"][0] == 3
    assert terms["budget"][1].item() == pytest.approx((mean.item() - 0.25) ** 2)


def test_the_retrieval_term_is_the_attention_on_entries_with_the_same_next_token():
    reader = reader_with(retrieval_weight=2.0, deletion=False)
    states = torch.randn(1, T, D)
    reader.bank.shared.add(torch.randn(2, D), Entries(tokens=torch.tensor([2, 19])))  # 2 follows position 1 alone
    weight, term = reader.at_states(states, context())[1].terms["retrieval"]
    query = F.normalize(reader.fc_query(states[0, 1]), dim=-1)
    scores = reader.scale * F.cosine_similarity(query[None], reader.bank.shared.get_all_embeddings(), dim=-1)
    assert weight == 2.0
    assert term.item() == pytest.approx(-scores.log_softmax(0)[0].item(), abs=1e-4)
