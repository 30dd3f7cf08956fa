"""kNN, cache and TRIME change the right probabilities, and read nothing from their own future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.readers.distribution import (
    CacheReader,
    DistributionReader,
    KNNReader,
    TrimeReader,
    earlier_in_block,
    other_rows,
)
from lightning_app.memory.slots import Entries
from lightning_app.models.decoder import Decoder

V, D, T = 17, 8, 12
OTHERS, OWN = 900, 5  # documents

MAKERS: dict[str, Callable[..., DistributionReader]] = {
    "knn": lambda **o: KNNReader(lam=0.5, temperature=1.0, writes="evaluation", **{"memory_size": 50} | o),
    "cache": lambda **o: CacheReader(lam=0.5, theta=1.0, **{"memory_size": 50} | o),
    "trime": lambda **o: TrimeReader(**{"memory_size": 50, "num_search_results": 50} | o),
    "trime, nearest": lambda **o: TrimeReader(**{"memory_size": 50, "num_search_results": 3} | o),
}
each = pytest.mark.parametrize("name", MAKERS)


def model_with(reader: DistributionReader, *, seed: int = 0) -> MemoryLM:
    torch.manual_seed(seed)
    backbone = Decoder(vocab_size=V, block_size=T, embedding_dim=D, layers=1, heads=2)
    torch.nn.init.normal_(backbone.transformer["wte"].weight, std=1.0)
    model = MemoryLM(backbone, [reader])
    model.eval()
    return model


def context_of(ids: Tensor, *, document: int = OWN, start: int = 0) -> TokenContext:
    B, T = ids.shape
    return TokenContext.of(
        ids=ids,
        next_ids=torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1),
        documents=torch.full_like(ids, document),
        positions=torch.arange(start, start + T).expand(B, T),
        new=torch.ones_like(ids, dtype=torch.bool),
        rows=torch.arange(B),
        segments=torch.zeros(T, dtype=torch.int64),
    )


def knowing(context: TokenContext, **columns: Tensor) -> TokenContext:
    return replace(context, entries=replace(context.entries, **columns))


def fill(
    reader: DistributionReader, vectors: Tensor, tokens: Tensor, *, document: int = OTHERS, start: int = 0
) -> None:
    n = len(vectors)
    positions = torch.arange(start, start + n)
    for memory in reader.bank.memories:
        memory.add(vectors, Entries(tokens, torch.full((n,), document), positions))


def random_ids(rows: int = 1) -> Tensor:
    return torch.randint(0, V, (rows, T), generator=torch.Generator().manual_seed(1))


def p_next(model: MemoryLM, ids: Tensor, **context: Any) -> Tensor:
    """(B, T, V) probabilities."""
    with torch.no_grad():
        return model.run(ids, context_of(ids, **context)).logits.softmax(-1)


@each
def test_a_state_that_was_seen_before_makes_its_token_likelier(name: str):
    reader = MAKERS[name]()
    model, ids = model_with(reader), random_ids()
    plain = p_next(model, ids)
    states = model.backbone.hidden(model.backbone.embed(ids)).last[0].detach()
    answers = (ids[0] + 5) % V  # what followed those states elsewhere
    fill(reader, states, answers)
    changed = p_next(model, ids)
    assert (changed[0].gather(1, answers[:, None]) > plain[0].gather(1, answers[:, None])).all()
    torch.testing.assert_close(changed.sum(-1), torch.ones(1, T))


def test_knn_by_hand():
    reader = KNNReader(lam=0.25, temperature=2.0, num_search_results=2, memory_size=9)
    model = model_with(reader)
    logits, states = torch.zeros(1, 1, V), torch.zeros(1, 1, D)
    vectors = torch.zeros(3, D)
    vectors[1, 0], vectors[2, 0] = 2.0, 9.0  # squared distances 0, 4, 81: weights 1, e^-2, and not among the nearest
    fill(reader, vectors, torch.tensor([3, 4, 5]))
    context = context_of(torch.zeros(1, 1, dtype=torch.int64))
    log_p, output = reader.at_logits(logits, states, context)
    share = 1 / (1 + torch.tensor(-2.0).exp())
    assert float(log_p[0, 0, 3].exp()) == pytest.approx(float(0.25 * share + 0.75 / V), rel=1e-5)
    assert float(log_p[0, 0, 4].exp()) == pytest.approx(float(0.25 * (1 - share) + 0.75 / V), rel=1e-5)
    assert float(log_p[0, 0, 5].exp()) == pytest.approx(0.75 / V, rel=1e-5)
    assert float(output.statistics["found"]) == 1
    assert float(output.statistics["hit_distance"]) == 0
    assert model.readers[0] is reader


def test_the_cache_by_hand():
    reader = CacheReader(lam=0.5, theta=2.0, memory_size=9)
    model_with(reader)
    states = torch.zeros(1, 3, D)
    states[0, :, 0] = torch.tensor([1.0, 0.0, 1.0])
    context = knowing(context_of(torch.tensor([[0, 7, 8]])), tokens=torch.tensor([[7, 8, -1]]))
    log_p, _ = reader.eval().at_logits(torch.zeros(1, 3, V), states, context)
    one = torch.tensor(2.0).exp()  # the third position: exp(2 x 1) for token 7, exp(0) for token 8
    assert float(log_p[0, 2, 7].exp()) == pytest.approx(float(0.5 * one / (one + 1) + 0.5 / V), rel=1e-5)
    assert float(log_p[0, 2, 8].exp()) == pytest.approx(float(0.5 / (one + 1) + 0.5 / V), rel=1e-5)
    torch.testing.assert_close(log_p[0, 0].exp(), torch.full((V,), 1 / V))  # nothing lies before the first


def test_trime_by_hand():
    reader = TrimeReader(temperature=0.5, weight=3.0, memory_size=9, num_search_results=9)
    model_with(reader)
    states = torch.zeros(1, 2, D)
    states[0, :, 0] = D**0.25  # sim = 1, exp(sim / 0.5) = e^2
    context = knowing(context_of(torch.tensor([[0, 7]])), tokens=torch.tensor([[7, -1]]))
    logits, _ = reader.eval().at_logits(torch.zeros(1, 2, V), states, context)
    square = 3 * float(torch.tensor(2.0).exp())
    p = logits.detach().softmax(-1)
    assert float(p[0, 1, 7]) == pytest.approx((1 + square) / (V + square), rel=1e-5)
    logits.square().sum().backward()
    assert 0 < reader.log_temperature.grad.abs() < torch.inf  # what must not be read has no part in it
    assert 0 < reader.log_weight.grad.abs() < torch.inf


# No leak


@each
def test_changing_later_tokens_changes_no_earlier_probability(name: str):
    torch.manual_seed(3)
    reader = MAKERS[name]()
    model, ids = model_with(reader), random_ids()
    fill(reader, torch.randn(30, D), torch.randint(0, V, (30,)))
    fill(reader, torch.randn(20, D), torch.randint(0, V, (20,)), document=OWN)  # full, also of the own document
    assert reader.bank.shared.size() == 50
    other = ids.clone()
    other[0, 7:] = (other[0, 7:] + 3) % V
    first, second = p_next(model, ids), p_next(model, other)
    assert torch.equal(first[0, :6], second[0, :6])  # position 6 is followed by the first changed token, see below
    torch.testing.assert_close(first[0, 6], second[0, 6])
    assert not torch.allclose(first[0, 7:], second[0, 7:])


@each
@pytest.mark.parametrize(("document", "position", "read"), [(OWN, 4, False), (OWN, 3, True), (OTHERS, 99, True)])
def test_an_entry_of_the_own_future_is_not_read(name: str, document: int, position: int, read: bool):
    """The query stands at position 4 of its document. The canary is its own state, with a token of its own."""
    reader = MAKERS[name]()
    model, canary = model_with(reader), V - 1
    ids = torch.tensor([[2]])
    state = model.backbone.hidden(model.backbone.embed(ids)).last[0].detach()
    plain = p_next(model, ids, start=4)
    fill(reader, state, torch.tensor([canary]), document=document, start=position)
    changed = p_next(model, ids, start=4)
    assert (changed[0, 0, canary] > plain[0, 0, canary]) == read
    assert torch.equal(changed, plain) == (not read)
    with torch.no_grad():
        found = reader.neighbours(state[None], context_of(ids, start=4))
    here = found.entries.tokens == canary
    assert here.any() == read
    if read:
        nearest = 0.0 if name == "knn" else -float(state.square().sum())
        assert float(found.distances[here][0]) == pytest.approx(nearest, abs=1e-4)


def test_rows_of_a_batch_hide_the_own_future():
    """Row 1 is the same document, one position further: row 0 at t may read its entries 0 .. t - 2."""
    states = torch.randn(2, 4, D)
    context = context_of(torch.arange(8).view(2, 4))
    context = knowing(context, positions=torch.stack([torch.arange(4), torch.arange(1, 5)]), tokens=context.ids)
    found = other_rows(states, context)
    assert found.entries.tokens[0].tolist() == [
        [-1] * 8,
        [-1] * 8,  # entry 0 of row 1 stands at position 1, where the query stands
        [-1] * 4 + [4, -1, -1, -1],
        [-1] * 4 + [4, 5, -1, -1],
    ]
    assert found.entries.tokens[1, 0].tolist() == [0, -1, -1, -1] + [-1] * 4
    unknown = other_rows(states, knowing(context, documents=torch.full((2, 4), -1)))
    assert (unknown.entries.tokens[0, 0] >= 0).tolist() == [False] * 4 + [True] * 4


def test_other_documents_of_the_batch_are_read_whole():
    context = context_of(torch.arange(8).view(2, 4))
    context = knowing(context, documents=torch.tensor([[1] * 4, [2] * 4]), tokens=context.ids)
    assert (other_rows(torch.randn(2, 4, D), context).entries.tokens[0] >= 0).sum(-1).tolist() == [4] * 4


def test_the_scope_of_a_document_keeps_to_it():
    states = torch.randn(1, 4, D)
    context = knowing(context_of(torch.arange(4)[None]), documents=torch.tensor([[1, 1, 2, 2]]))
    within = earlier_in_block(states, context, own_document_only=True)
    assert (within.entries.tokens >= 0).sum(-1).tolist() == [[0, 1, 0, 1]]
    assert (earlier_in_block(states, context).entries.tokens >= 0).sum(-1).tolist() == [[0, 1, 2, 3]]
    reader = CacheReader(memory_size=9, scope="document")
    model_with(reader)
    fill(reader, torch.randn(3, D), torch.tensor([1, 2, 3]), document=OTHERS)
    found = reader.eval().neighbours(torch.randn(1, 1, D), context_of(torch.tensor([[1]]), start=9))
    assert not found.entries.tokens.ge(0).any()


# Switched off


@pytest.mark.parametrize("name", ["knn", "cache"])
def test_a_lam_of_0_is_the_plain_model_bit_for_bit(name: str):
    reader: Any = MAKERS[name]()
    model, ids = model_with(reader), random_ids()
    fill(reader, torch.randn(50, D), torch.randint(0, V, (50,)))
    plain = model.backbone(ids).detach().log_softmax(-1)
    options = reader.config()
    reader.tune(lam=0.0, **{key: options[key] for key in ("temperature", "theta") if key in options})
    with torch.no_grad():
        assert torch.equal(model.run(ids, context_of(ids)).logits, plain)


@pytest.mark.parametrize("name", ["knn", "cache"])
def test_training_does_not_read(name: str):
    reader = MAKERS[name]()
    model, ids = model_with(reader).train(), random_ids()
    fill(reader, torch.randn(50, D), torch.randint(0, V, (50,)))
    found = model.run(ids, context_of(ids))
    assert torch.equal(found.logits, model.backbone(ids))
    assert found.reader_outputs[0].update is None


# Writing


@each
def test_what_is_written(name: str):
    reader = MAKERS[name]()
    model, ids = model_with(reader), random_ids()
    with torch.no_grad():
        found = model.run(ids, context_of(ids))
    update = found.reader_outputs[0].update
    assert update is not None
    assert update.entries.tokens.tolist() == ids[0, 1:].tolist()  # what follows the last token is not known
    torch.testing.assert_close(update.entries.vectors, found.states.last[0, :-1])
    before = reader.bank.shared.size()
    reader.bank.write(update, training=False)
    assert (before, reader.bank.shared.size()) == (0, T - 1)


def test_a_datastore_is_not_written_to():
    reader = KNNReader(memory_size=9)
    model, ids = model_with(reader), random_ids()
    assert model.run(ids, context_of(ids)).reader_outputs[0].update is None


def test_the_memory_of_each_row_is_its_own():
    reader = CacheReader(memory_size=9, streams=2)
    model_with(reader)
    reader.bank.memories[1].add(torch.ones(2, D), Entries(torch.tensor([4, 5])))
    reader.bank.memories[0].add(torch.ones(1, D), Entries(torch.tensor([6])))
    context = context_of(torch.zeros(2, 1, dtype=torch.int64))
    found = reader.eval().neighbours(torch.ones(2, 1, D), context)
    assert [sorted(row[row >= 0].tolist()) for row in found.entries.tokens[:, 0]] == [[6], [4, 5]]


# TRIME trains


@pytest.mark.parametrize("autocast", [False, True])
def test_trime_sends_gradients_to_queries_and_entries(autocast: bool):
    reader = TrimeReader(memory_size=50, num_search_results=50)
    model_with(reader)
    reader.train()
    fill(reader, torch.randn(50, D), torch.randint(0, V, (50,)))
    states = torch.randn(2, T, D, requires_grad=True)
    ids = random_ids(2)
    context = knowing(context_of(ids), documents=torch.tensor([[1] * T, [2] * T]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, output = reader.at_logits(torch.zeros(2, T, V), states, context)
    assert logits.dtype == torch.float32
    logits[0, 5].log_softmax(-1)[3].backward()  # one query
    assert states.grad is not None
    assert torch.isfinite(states.grad).all()
    assert (states.grad[0, :6].abs().sum(-1) > 0).all()  # the query, and the entries before it in its own block
    assert (states.grad[0, 6:] == 0).all()
    assert (states.grad[1, :-1].abs().sum(-1) > 0).all()  # and those of the other row
    assert output.update is not None
    assert not output.update.entries.vectors.requires_grad


def test_trime_without_the_batch_reads_its_own_row():
    reader = TrimeReader(memory_size=50, batch=False)
    model_with(reader)
    assert reader.train().neighbours(torch.randn(2, T, D), context_of(random_ids(2))).entries.tokens.shape[-1] == T


def test_trime_learns_on_a_whole_model_in_bf16():
    reader = TrimeReader(memory_size=30, num_search_results=30, scope="stream", streams=2)
    model, ids = model_with(reader).train(), random_ids(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            found = model.run(ids, context_of(ids))
        loss = torch.nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        update = found.reader_outputs[0].update
        assert update is not None
        reader.bank.write(update, training=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


# Options


@each
def test_config_rebuilds_the_reader(name: str):
    reader = MAKERS[name]()
    model_with(reader)
    rebuilt = type(reader)(**reader.config())
    model_with(rebuilt)
    assert rebuilt.config() == reader.config()


def test_weights_travel_in_the_checkpoint():
    reader = KNNReader(memory_size=5)
    model = model_with(reader)
    reader.tune(lam=0.375, temperature=3.0)
    fresh = KNNReader(memory_size=5)
    model_with(fresh).load_state_dict(model.state_dict())
    assert (fresh.config()["lam"], fresh.config()["temperature"]) == (0.375, 3.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KNNReader(lam=1.5), "lam is 1.5"),
        (lambda: KNNReader(temperature=0.0), "temperature is 0.0"),
        (lambda: CacheReader(theta=-1.0), "theta is -1.0"),
        (lambda: TrimeReader(temperature=0.0), "temperature is 0.0"),
        (lambda: TrimeReader(metric="l2"), "inner_product"),
        (lambda: model_with(KNNReader(memory_dim=D + 1)), "leave memory_dim out"),
    ],
)
def test_bad_options(make: Callable[[], object], message: str):
    with pytest.raises(InputError, match=message):
        make()
