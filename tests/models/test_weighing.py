import pytest
import torch

from lightning_app.models.losses import IGNORE
from lightning_app.models.weighing import COUNTED, Window, counts_of


def test_what_a_batch_has_of_each():
    targets = torch.tensor([[IGNORE, 5, 6, IGNORE], [7, IGNORE, IGNORE, IGNORE], [IGNORE] * 4])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert dict(zip(COUNTED, counts_of(targets, mask).tolist(), strict=True)) == {
        "targets": 3,
        "tokens": 5,
        "texts": 2,
        "batches": 1,
    }


def test_each_term_is_weighed_by_what_it_is_a_mean_over():
    """Targets 3 and 1, tokens 5 and 15; the Trainer divides by 4 batches, though the step has two."""
    window = Window(torch.tensor([[3, 5, 2, 1], [1, 15, 2, 1]]), accumulate=4)
    over = {"ce": "targets", "z": "tokens"}
    ce, z, other = (torch.tensor([a, b], requires_grad=True) for a, b in ((2.0, 6.0), (1.0, 2.0), (10.0, 30.0)))
    parts, means = [], {}
    for i in range(2):
        terms = {"ce": (1.0, ce[i]), "z": (0.1, z[i]), "other": (0.5, other[i])}
        part, means = window.weigh(terms, over)  # type: ignore[arg-type]
        parts.append(part / 4)
        if i == 0:
            assert {name: float(x) for name, x in means.items()} == pytest.approx({"ce": 2, "z": 1, "other": 10})
    assert {name: float(x) for name, x in means.items()} == pytest.approx({"ce": 3, "z": 1.75, "other": 20})
    assert float(sum(parts).detach()) == pytest.approx(3 + 0.175 + 10)
    torch.stack(parts).sum().backward()
    assert ce.grad.tolist() == pytest.approx([0.75, 0.25])
    assert z.grad.tolist() == pytest.approx([0.025, 0.075])
    assert other.grad.tolist() == pytest.approx([0.25, 0.25])


def test_a_step_without_any_target_has_no_loss_and_no_nan():
    window = Window(torch.tensor([[0, 5, 2, 1], [0, 5, 2, 1]]), accumulate=2)
    for _ in range(2):
        loss, means = window.weigh({"ce": (1.0, torch.zeros(()))}, {"ce": "targets"})
        assert float(loss) == float(means["ce"]) == 0
