"""PointerReader: it starts as the cache, learns alone, and its parts do what their formulas say."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.readers import CacheReader, PointerReader
from lightning_app.memory.readers.pointer import AGES, log2_of
from lightning_app.models.decoder import Decoder
from tests.made_models import learned_pointer
from tests.memory.readers.test_distribution import D, T, V, context_of, fill, knowing, model_with, random_ids

START: dict[str, Any] = {"lam": 0.2, "theta": 0.5, "memory_size": 50}


@pytest.mark.parametrize("scope", ["shared", "stream", "document"])
def test_at_first_it_is_the_cache(scope: Any):
    found = []
    for reader in (CacheReader(**START, scope=scope, streams=2), PointerReader(**START, scope=scope, streams=2)):
        model = model_with(reader)
        fill(reader, torch.randn(20, D, generator=torch.Generator().manual_seed(4)), torch.arange(20) % V)
        ids = random_ids(2)
        with torch.no_grad():
            found.append(model.run(ids, context_of(ids)))
    one, two = found
    torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=1e-6)
    weights = [output.reader_outputs[0].reads().weights for output in found]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


@torch.no_grad()
def test_by_hand():
    """Two entries before the third position, 2 and 1 tokens ago, and a stored one 2 tokens before the block."""
    reader = PointerReader(lam=0.5, theta=2.0, memory_size=9)
    model_with(reader)
    for vector in (torch.eye(D)[:1], torch.zeros(1, D)):
        fill(reader, vector, torch.tensor([9]))
    reader.bank.of(0).remove(torch.tensor([1]))  # ages go on counting it
    reader.metric_change.weight[0, 0] = 0.5  # q.h is 1.5 h.h along the first axis
    reader.age_bias[0], reader.age_bias[1], reader.age_bias[2] = 0.1, 0.2, 0.3  # 1, 2 to 3, and 4 to 7 tokens ago
    reader.gate.outer.bias.fill_(math.log(3))  # 3 of 4
    states = torch.zeros(1, 3, D)
    states[0, :, 0] = torch.tensor([1.0, 0.0, 1.0])
    context = knowing(context_of(torch.tensor([[0, 7, 8]])), tokens=torch.tensor([[7, 8, -1]]))
    log_p, output = reader.eval().at_logits(torch.zeros(1, 3, V), states, context)
    scores = torch.tensor([3.0 + 0.3, 3.0 + 0.2, 0.0 + 0.1]).softmax(0)  # of 9, 7 and 8
    for token, share in zip((9, 7, 8), scores.tolist(), strict=True):
        assert float(log_p[0, 2, token].exp()) == pytest.approx(0.75 * share + 0.25 / V, rel=1e-5)
    assert float(output.statistics["gate"]) == pytest.approx(0.75)
    assert float(output.reads().weights[0, 2].sum()) == pytest.approx(0.75)


def test_ages_are_told_apart_by_powers_of_two():
    ages = torch.arange(1, 2**17)
    expected = torch.tensor([age.bit_length() - 1 for age in ages.tolist()])
    assert torch.equal(log2_of(ages.float()), expected)
    assert log2_of(torch.tensor([-5.0, 0.0, 2.0**40])).tolist() == [0, 0, AGES - 1]


def test_it_learns_alone_what_evaluation_scores():
    """The term is the nats of the mixture; only the reader's parameters, all of them, get a gradient from it."""
    reader = learned_pointer(**START, writes="always", streams=2)
    model, ids = model_with(reader), random_ids(2)
    fill(reader, torch.randn(20, D, generator=torch.Generator().manual_seed(4)), torch.arange(20) % V)
    context = context_of(ids)
    with torch.no_grad():
        log_p = model.run(ids, context).logits[:, :-1]
    found = model.train().run(ids, context)
    weight, term = found.reader_outputs[0].terms["pointer"]
    assert weight == 1
    assert float(term.detach()) == pytest.approx(float(-log_p.gather(-1, ids[:, 1:, None]).mean()), rel=1e-5)
    assert torch.equal(found.logits, model.backbone.logits(model.backbone.hidden(model.backbone.embed(ids)).last))
    term.backward()
    own = {id(p) for p in reader.parameters()}
    assert len(own) == 7
    gradients = {id(p): p.grad for p in model.parameters() if p.grad is not None}
    assert gradients.keys() == own
    assert all(bool(gradient.any()) and bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_a_batch_without_targets_gives_every_parameter_a_gradient():
    """DDP waits for each of them."""
    reader = PointerReader(**START)
    model, ids = model_with(reader).train(), random_ids()
    context = knowing(context_of(ids), tokens=torch.full_like(ids, -1))
    term = model.run(ids, context).reader_outputs[0].terms["pointer"][1]
    term.backward()
    assert float(term.detach()) == 0
    assert all(p.grad is not None for p in reader.parameters())


def test_it_learns_how_old_what_counts_is():
    """Every token stands twice: half of the tokens are known to whom the last one counts more than those before."""
    reader = PointerReader(lam=0.1, theta=0.01, memory_size=9)
    model, drawn = model_with(reader).train(), torch.Generator().manual_seed(5)
    torch.nn.init.zeros_(cast(Decoder, model.backbone).transformer["wte"].weight)  # all states are alike
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.05)
    terms = []
    for _ in range(40):
        ids = torch.randint(0, V, (16, T // 2), generator=drawn).repeat_interleave(2, dim=1)
        term = model.run(ids, context_of(ids)).reader_outputs[0].terms["pointer"][1]
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        terms.append(float(term.detach()))
    assert terms[-1] < terms[0] - 0.3
    assert int(reader.age_bias.argmax()) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": 0.0}, "lam is 0.0"),
        ({"lam": 1.0}, "lam is 1.0"),
        ({"theta": 0.0}, "theta is"),
        ({"hidden": 0}, "hidden"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        PointerReader(**options)
