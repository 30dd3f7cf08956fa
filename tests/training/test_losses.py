from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.models.losses import IGNORE
from lightning_app.models.weighing import Window
from lightning_app.training import losses
from lightning_app.training.losses import joined, of_all_ranks, of_step, weighted_sum

CPU = torch.device("cpu")


def number(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def test_terms_are_joined_with_their_weight_and_summed():
    terms = joined({"ce": (1.0, number(2.0))}, {"art": (0.5, number(3.0)), "drift": (0.5, number(4.0))})
    assert {name: weight for name, (weight, _) in terms.items()} == {"ce": 1.0, "art": 0.5, "drift": 0.5}
    assert weighted_sum(terms, device=CPU) == 2.0 + 1.5 + 2.0
    assert weighted_sum({}, device=CPU) == 0.0


def test_one_name_stands_for_one_term():
    with pytest.raises(InputError, match="two loss terms have the name 'art'"):
        joined({"ce": (1.0, number(2.0)), "art": (1.0, number(1.0))}, {"art": (0.5, number(3.0))})


def test_each_term_is_meant_over_what_it_is_a_mean_of(monkeypatch: pytest.MonkeyPatch):
    """Here the counts themselves are seen; tests/test_ddp.py runs two processes."""
    monkeypatch.setattr(losses, "mean_over_ranks", lambda mean, n: mean * n)
    targets = torch.tensor([[1, 2, IGNORE], [3, IGNORE, IGNORE]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    terms = {name: (0.5, torch.tensor(1.0)) for name in ("ce", "read", "art", "other")}
    over = {"ce": "targets", "read": "tokens", "art": "texts", "absent": "texts"}
    found = of_all_ranks(terms, targets, mask, over)  # type: ignore[arg-type]
    assert {name: float(term) for name, (_, term) in found.items()} == {"ce": 3, "read": 5, "art": 2, "other": 1}
    assert {weight for weight, _ in found.values()} == {0.5}


def test_a_batch_that_is_a_step_is_all_of_it():
    loss = number(2.5)
    step = of_step(loss, {"ce": (1.0, number(2.0)), "art": (0.5, number(1.0))}, None, {})
    assert step.part is loss
    assert step.so_far == 2.5
    assert not step.so_far.requires_grad
    assert {name: float(mean) for name, mean in step.means.items()} == {"ce": 2.0, "art": 1.0}


def test_batches_of_a_step_count_by_what_they_have():
    """Of 4 targets the first batch has 1 and the second 3; both count alike where nothing is said."""
    counts = torch.tensor([[1, 9, 1, 1], [3, 9, 1, 1]])
    window, over = Window(counts, accumulate=2), {"ce": "targets"}
    parts, so_far = [], []
    for ce, art in ((8.0, 2.0), (4.0, 4.0)):
        terms = {"ce": (1.0, number(ce)), "art": (0.5, number(art))}
        step = of_step(weighted_sum(terms, device=CPU), terms, window, over)  # type: ignore[arg-type]
        parts.append(float(step.part.detach()) / 2)  # Lightning divides by `accumulate`
        so_far.append(float(step.so_far))
    assert sum(parts) == pytest.approx((8 * 1 + 4 * 3) / 4 + 0.5 * 3)
    assert so_far == pytest.approx([8 + 0.5 * 2, 5 + 0.5 * 3])
    assert {name: float(mean) for name, mean in step.means.items()} == pytest.approx({"ce": 5.0, "art": 3.0})
