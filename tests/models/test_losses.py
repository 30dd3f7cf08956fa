"""Cross-entropy against PyTorch's own in values and gradients; the other measures against numbers by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_app.models import losses
from lightning_app.models.losses import IGNORE, bits_per_byte, cross_entropy, distillation, macro_f1, token_nll


def batch(dtype=torch.float32, *, shape=(3, 5, 11), scale=3.0):
    """Logits that want a gradient, and targets of which 4 of 15 are ignored."""
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=rng, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    targets = torch.randint(shape[-1], shape[:-1], generator=rng)
    targets[0, :3] = IGNORE
    targets[-1, -1] = IGNORE
    return logits, targets


def value_and_gradient(loss, logits, targets, factor=1.0):
    value = loss(logits, targets)
    (gradient,) = torch.autograd.grad(value * factor, logits)
    return value.detach(), gradient


def torchs(logits, targets):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100)


def test_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 5.0]]])
    targets = torch.tensor([[0, 1, IGNORE]])  # -log 1/4, -log 1/2, not counted
    for wants_gradient in (False, True):
        found = cross_entropy(logits.requires_grad_(wants_gradient), targets)
        assert found.item() == pytest.approx((math.log(4) + math.log(2)) / 2, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, -0.25])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_equals_torch_in_value_and_gradient(dtype, tolerance, factor):
    logits, targets = batch(dtype)
    found = value_and_gradient(cross_entropy, logits, targets, factor)
    expected = value_and_gradient(torchs, logits, targets, factor)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert expected[1].abs().max() > 0.005
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits, targets), expected[0], rtol=0, atol=tolerance)


def test_gradcheck():
    logits, targets = batch(torch.float64, shape=(2, 4, 5), scale=1.0)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), logits, atol=1e-7, rtol=1e-6)


def test_half_precision_is_summed_in_single():
    logits, targets = batch(torch.bfloat16, shape=(3, 40, 300))
    value, gradient = value_and_gradient(cross_entropy, logits, targets)
    expected = value_and_gradient(torchs, logits.detach().float().requires_grad_(), targets)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value.float(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.float(), expected[1], rtol=2**-7, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits, targets).float(), expected[0], rtol=2**-7, atol=0)


@pytest.mark.parametrize("rows", [1, 4, 15])
def test_chunks_do_not_show(monkeypatch, rows):
    logits, targets = batch()
    expected = value_and_gradient(torchs, logits, targets)
    monkeypatch.setattr(losses, "CHUNK", rows * logits.shape[-1])
    torch.testing.assert_close(value_and_gradient(cross_entropy, logits, targets), expected, rtol=0, atol=1e-6)


def test_a_row_may_be_longer_than_a_chunk(monkeypatch):
    logits, targets = batch()
    monkeypatch.setattr(losses, "CHUNK", 3)
    expected = value_and_gradient(torchs, logits, targets)
    torch.testing.assert_close(value_and_gradient(cross_entropy, logits, targets), expected, rtol=0, atol=1e-6)


def test_shifted_slices_need_no_copy_by_the_caller():
    logits, targets = batch()
    value, gradient = value_and_gradient(lambda x, y: cross_entropy(x[:, :-1], y[:, 1:]), logits, targets)
    expected = value_and_gradient(lambda x, y: torchs(x[:, :-1], y[:, 1:]), logits, targets)
    torch.testing.assert_close((value, gradient), expected, rtol=0, atol=1e-6)
    assert not gradient[:, -1].any()


def test_nothing_to_predict_is_zero_with_zero_gradient():
    logits, targets = batch()
    value, gradient = value_and_gradient(cross_entropy, logits, torch.full_like(targets, IGNORE))
    assert value == 0
    assert gradient.shape == logits.shape
    assert not gradient.any()
    with torch.no_grad():
        assert cross_entropy(logits, torch.full_like(targets, IGNORE)) == 0


def test_ignored_positions_get_no_gradient_and_the_others_sum_to_zero():
    logits, targets = batch()
    _, gradient = value_and_gradient(cross_entropy, logits, targets)
    assert (targets == IGNORE).sum() == 4
    assert not gradient[targets == IGNORE].any()
    assert gradient[targets != IGNORE].abs().sum(-1).min() > 0
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(targets.shape), rtol=0, atol=1e-7)


def test_logits_are_expected_and_not_probabilities():
    logits, targets = batch(torch.float64)
    shift = torch.tensor([100.0, -100.0, 7.0], dtype=torch.float64)[:, None, None]
    found = value_and_gradient(cross_entropy, logits, targets)
    shifted = value_and_gradient(lambda x, y: cross_entropy(x + shift, y), logits, targets)
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits + shift, targets), found[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(cross_entropy(logits.log_softmax(-1), targets), found[0], rtol=0, atol=1e-12)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]]).requires_grad_()
    value, gradient = value_and_gradient(cross_entropy, logits, torch.tensor([[1]]))
    assert value == 2e4
    assert gradient.tolist() == [[[1.0, -1.0, 0.0]]]


@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("target", [-1, 11])
def test_an_impossible_target_is_refused(target, wants_gradient):
    logits, targets = batch()
    targets[1, 1] = target
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropy(logits.detach().requires_grad_(wants_gradient), targets)


def test_backward_twice_adds_the_gradient_twice():
    logits, targets = batch()
    (once,) = torch.autograd.grad(torchs(logits, targets), logits)
    loss = cross_entropy(logits, targets)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once, rtol=0, atol=1e-6)


def test_token_nll_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]], [[1.0, 1.0], [0.0, math.log(7.0)]]]).bfloat16().double()
    found = token_nll(logits, torch.tensor([[1, 0], [IGNORE, 0]]))
    assert found.dtype == torch.float32
    expected = torch.tensor([[math.log(4 / 3), math.log(2)], [0, math.log(8)]])
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)
    assert found[1, 0] == 0


def test_token_nll_averages_to_the_loss():
    logits, targets = batch()
    nll = token_nll(logits, targets)
    assert nll.shape == targets.shape
    torch.testing.assert_close(nll.sum() / 11, torchs(logits, targets))


def test_macro_f1_by_hand():
    # class 0: 2 of 2 right; 1: predicted 4 times, right once, occurs twice; 2: never predicted; 3: does not occur
    found = macro_f1(torch.tensor([2, 1, 0, 0]), torch.tensor([2, 4, 0, 0]), torch.tensor([2, 2, 2, 0]))
    assert found.item() == pytest.approx((1 + 1 / 3 + 0) / 3, abs=1e-15)
    nothing = torch.zeros(4, dtype=torch.long)
    assert macro_f1(nothing, nothing, nothing) == 0


def test_bits_per_byte_by_hand():
    nats = torch.tensor(12 * math.log(2), dtype=torch.float64)
    assert bits_per_byte(nats, torch.tensor(8)).item() == pytest.approx(1.5, abs=1e-15)
    assert bits_per_byte(torch.zeros(()), torch.tensor(0)) == 0


def test_distillation_by_hand():
    """At T 2 logits 2 log 3 and 0 are probabilities 3 / 4 and 1 / 4; the position without a target does not count."""
    teacher = torch.tensor([[[2 * math.log(3.0), 0.0], [5.0, 0.0]]])
    student = torch.zeros(1, 2, 2, requires_grad=True)
    found = distillation(student, teacher, torch.tensor([[1, IGNORE]]), temperature=2.0)
    assert float(found.detach()) == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-6)
    found.backward()
    assert student.grad is not None
    assert student.grad[0, 0].tolist() == pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)])  # T (p - q)
    assert student.grad[0, 1].tolist() == [0.0, 0.0]


def test_a_student_that_equals_its_teacher_learns_nothing_from_it():
    logits = torch.randn(2, 3, 7)
    assert float(distillation(logits, logits, torch.ones(2, 3, dtype=torch.int64))) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits, -logits, torch.full((2, 3), IGNORE))) == 0
