"""What a model is held to on texts that it has learned before."""

import pytest
import torch
from torch import Tensor, nn

from lightning_app.art.rehearsal import forgotten
from lightning_app.models.modes import evaluated

V = 7


def model(seed: int, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(V, V), nn.Dropout(dropout))


def logits(of: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    assert mask.sum() == 5
    assert ids.shape[1] == 3  # as long as the longest
    return of(ids)


TEXTS = torch.tensor([[3, 1, 4, -1], [5, 2, -1, -1]])


def test_it_is_the_kl_divergence_of_the_next_tokens():
    live, averaged = model(0), model(1)
    p, q = (some[0].weight.detach().softmax(-1).double() for some in (averaged, live))
    by_hand = sum(float((p[i] * (p[i] / q[i]).log()).sum()) for i in (3, 1, 5)) / 3
    assert by_hand > 0.1
    assert forgotten(live, averaged, TEXTS, logits).item() == pytest.approx(by_hand, rel=1e-5)


def test_it_is_0_where_both_say_the_same_and_has_a_gradient_in_the_live_one_alone_once_they_differ():
    live, averaged = model(0), model(0, dropout=0.5)
    assert forgotten(live, averaged, TEXTS, logits).item() == pytest.approx(0, abs=1e-6)
    loss = forgotten(live, model(1), TEXTS, logits)
    loss.backward()
    assert live[0].weight.grad[[3, 1, 5]].abs().sum(-1).min() > 0
    assert live[0].weight.grad[[0, 2, 4, 6]].abs().sum() == 0  # the last tokens predict what is not known
    assert averaged[0].weight.grad is None


def test_without_texts_it_is_0():
    assert forgotten(model(0), model(1), TEXTS[:0], logits) == 0


def test_dropout_is_drawn_in_the_live_model_and_only_where_there_is_a_gradient():
    live, averaged = model(0, dropout=0.5), model(0)
    assert forgotten(live, averaged, TEXTS, logits) > 0.1
    before = torch.get_rng_state()
    with torch.no_grad():
        assert forgotten(live, averaged, TEXTS, logits).item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(torch.get_rng_state(), before)
    assert live.training


def test_modes_come_back_part_by_part_though_the_forward_raises():
    some = model(0)
    some[1].eval()
    seen = []
    some.register_forward_hook(lambda module, *_: seen.append(module.training) or 1 / 0)
    with pytest.raises(ZeroDivisionError), evaluated(some):
        some(torch.zeros(1, dtype=torch.int64))
    assert seen == [False]
    assert [part.training for part in some.modules()] == [True, True, False]
