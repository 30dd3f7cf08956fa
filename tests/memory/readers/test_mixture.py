"""GatedMixture: it starts as its readers one after the other, learns their shares alone, and says who was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import (
    CacheReader,
    GatedMixture,
    KNNReader,
    NGramReader,
    PointerReader,
    Reader,
    TrimeReader,
)
from lightning_app.models.decoder import Decoder
from lightning_app.models.registry import build, describe
from tests.made_models import learned_mixture, learned_pointer
from tests.memory.readers.test_distribution import D, T, V, context_of, fill, random_ids

SIZE: dict[str, Any] = {"memory_size": 30, "num_search_results": 30}


def four(pointer: Callable[..., Reader] = PointerReader) -> list[Reader]:
    return [
        NGramReader(order=3, lam=0.3),
        KNNReader(lam=0.2, temperature=2.0, scope="shared", **SIZE),
        pointer(lam=0.15, theta=0.3, scope="shared", **SIZE),
        CacheReader(lam=0.1, theta=0.2, scope="shared", **SIZE),
    ]


def model_of(*readers: Reader) -> MemoryLM:
    torch.manual_seed(0)
    backbone = Decoder(vocab_size=V, block_size=T, embedding_dim=D, layers=1, heads=2)
    torch.nn.init.normal_(backbone.transformer["wte"].weight, std=1.0)
    model = MemoryLM(backbone, readers, freeze=True)
    for reader in readers:
        if isinstance(reader, NGramReader):
            reader.bank.hold(torch.arange(200) * 7 % V)
        elif reader.bank.memories:
            fill(reader, torch.randn(20, D, generator=torch.Generator().manual_seed(4)), torch.arange(20) % V)  # type: ignore[arg-type]
    model.eval()
    return model


@torch.no_grad()
@pytest.mark.parametrize("empty", [False, True], ids=["all say something", "some say nothing"])
@pytest.mark.parametrize("first", [list, lambda: [TrimeReader(**SIZE)]], ids=["", "behind trime"])
def test_at_first_it_is_its_readers_one_after_the_other(empty: bool, first: Callable[[], list[Reader]]):
    ids, found = random_ids(2), []
    for last in ([], [GatedMixture()]):
        model = model_of(*first(), *four(), *last)
        for reader in model.readers if empty else []:
            if isinstance(reader, KNNReader | NGramReader):
                reader.bank.shared.reset() if isinstance(reader, KNNReader) else reader.bank.hold(torch.zeros(0))
        found.append(model.run(ids, context_of(ids)))
    one, two = found
    torch.testing.assert_close(one.logits.log_softmax(-1), two.logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(two.logits.logsumexp(-1), torch.zeros(2, T), rtol=0, atol=1e-6)


@torch.no_grad()
def test_who_was_read_has_what_the_tokens_got():
    """All shares together are what the mixture is made of, beside the counts and the model."""
    readers = [KNNReader(lam=0.2, temperature=2.0, **SIZE), CacheReader(lam=0.1, theta=0.2, scope="shared", **SIZE)]
    model, ids = model_of(*readers, learned_mixture()), random_ids()
    found = model.run(ids, context_of(ids))
    reads = [output.reads() for output in found.reader_outputs[:2]]  # type: ignore[misc]
    rest = 1 - sum(one.weights.sum(-1, keepdim=True) for one in reads)
    p = rest * model.plain_logits(ids, found).softmax(-1)
    for one in reads:
        p = p.scatter_add(-1, one.entries.tokens.clamp_min(0), one.weights)
    torch.testing.assert_close(found.logits.exp(), p, rtol=0, atol=1e-6)
    assert float(reads[0].weights.sum(-1).std()) > 0.01  # the shares depend on the place


def test_it_learns_alone_what_evaluation_scores():
    model, ids = model_of(*four(learned_pointer), learned_mixture()), random_ids()
    with torch.no_grad():
        log_p = model.run(ids, context_of(ids)).logits[:, :-1]
    model.train()
    found = model.run(ids, context_of(ids))
    weight, term = found.reader_outputs[-1].terms["mixture"]
    assert weight == 1
    assert float(term.detach()) == pytest.approx(float(-log_p.gather(-1, ids[:, 1:, None]).mean()), rel=1e-5)
    assert torch.equal(found.logits, model.plain_logits(ids, found))
    term.backward()
    own = {name for name, _ in model.named_parameters() if ".gate." in name or "readers.2." in name}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == own
    assert len(own) == 4 + 7
    assert all(bool(gradient.any()) and bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_a_gate_that_is_wide_open_leaves_the_model_a_share_and_has_gradients():
    """As after much text in which the pointer was always right."""
    pointer = learned_pointer(lam=0.15, theta=0.3, scope="shared", **SIZE)
    model, ids = model_of(pointer, learned_mixture()), random_ids()
    for gate in (pointer.gate, model.readers[-1].gate):
        torch.nn.init.constant_(gate.outer.bias, 40.0)
    with torch.no_grad():
        assert model.run(ids, context_of(ids)).logits.isfinite().all()
    found = model.train().run(ids, context_of(ids))
    found.reader_outputs[-1].terms["mixture"][1].backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_it_learns_who_is_right():
    """The counts know the text, the cache does not."""
    model = model_of(NGramReader(order=3, lam=0.1), CacheReader(lam=0.3, theta=0.1), GatedMixture())
    ids = (torch.arange(2 * T).view(2, T) * 7 % V)[:1]
    optimizer = torch.optim.Adam(model.readers[-1].parameters(), lr=0.05)
    for _ in range(40):
        found = model.train().run(ids, context_of(ids))
        optimizer.zero_grad()
        found.reader_outputs[-1].terms["mixture"][1].backward()
        optimizer.step()
    shares = found.reader_outputs[-1].statistics
    assert float(shares["gate0"]) > 0.8
    assert float(shares["gate1"]) < 0.1


def test_a_reader_with_a_weight_of_0_stays_out():
    model, ids = model_of(CacheReader(lam=0.0, **SIZE), learned_mixture()), random_ids()
    with torch.no_grad():
        plain: Tensor = model.backbone(ids).log_softmax(-1)
        torch.testing.assert_close(model.run(ids, context_of(ids)).logits, plain, rtol=0, atol=1e-6)


def test_a_description_rebuilds_it():
    model = model_of(*four(), GatedMixture(hidden=5))
    again = build(describe(model))
    again.load_state_dict(model.state_dict())
    ids = random_ids()
    with torch.no_grad():
        assert torch.equal(again.eval().run(ids, context_of(ids)).logits, model.run(ids, context_of(ids)).logits)
    assert describe(again) == describe(model)


@torch.no_grad()
def test_in_a_model_of_half_precision_the_gates_keep_their_type():
    model, ids = model_of(*four(learned_pointer), learned_mixture()), random_ids()
    whole = model.run(ids, context_of(ids)).logits
    model.to(torch.bfloat16)
    half = model.run(ids, context_of(ids)).logits
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.logsumexp(-1), torch.zeros(1, T), rtol=0, atol=1e-6)
    torch.testing.assert_close(half.exp(), whole.exp(), rtol=0, atol=0.1)


def test_without_what_tokens_alone_tell_the_others_are_mixed_as_ever():
    model = model_of(*four(), GatedMixture())
    assert [type(reader) for reader in model.of_states.readers] == [KNNReader, PointerReader, CacheReader]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("readers", "said"),
    [
        (lambda: [GatedMixture()], "give one"),
        (lambda: [TrimeReader(), GatedMixture()], "give one"),
        (lambda: [CacheReader(), GatedMixture(), KNNReader()], "GatedMixture is reader 2 of 3"),
        (lambda: [CacheReader(), GatedMixture(hidden=0)], "hidden is 0"),
    ],
)
def test_bad_lists(readers: Callable[[], list[Reader]], said: str):
    with pytest.raises(InputError, match=said):
        VardaGPT(Decoder(vocab_size=V, block_size=T, embedding_dim=D, layers=1, heads=2), readers())
