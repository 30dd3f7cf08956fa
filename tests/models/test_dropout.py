"""Dropout: how many zeros, which scale, which gradient, and no pattern among neighbours."""

import pytest
import torch

from lightning_app.models.dropout import Dropout, dropout

N = 200_003  # not a multiple of four, in which the random numbers come


def drop_ones(p, *, dtype=torch.float32, seed=0, shape=(N,)):
    torch.manual_seed(seed)
    return dropout(torch.ones(shape, dtype=dtype), p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.9])
def test_share_of_zeros_and_scale(p, dtype):
    y = drop_ones(p, dtype=dtype)
    assert y.dtype == dtype
    assert y.shape == (N,)
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / N) ** 0.5 + 2**-16)
    expected = torch.tensor(1 / (1 - p), dtype=dtype)
    torch.testing.assert_close(y[y != 0], expected.expand(int((y != 0).sum())))


def test_values_are_scaled_and_not_replaced():
    x = torch.randn(37, 11, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    y = dropout(x, 0.25)
    zero = y == 0
    assert 0 < zero.sum() < x.numel()
    torch.testing.assert_close(y[~zero], x[~zero] / 0.75)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_gradient_mask_is_the_forward_mask(p):
    x = torch.ones(1_001, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, p)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert 0 < (y == 0).sum() < len(x)
    assert torch.equal(gradient, y.detach())


def test_neighbours_are_independent():
    """Elements that share a random number, and rows, show no correlation: five standard errors of 1 / sqrt(N)."""
    zeros = (drop_ones(0.5) == 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs((zeros[lag:] * zeros[:-lag]).mean().item()) * 4 < 5 / N**0.5, lag


def test_same_seed_same_mask():
    first, again, other = (drop_ones(0.3, seed=seed, shape=(7, 101)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_calls_draw_two_masks():
    torch.manual_seed(0)
    x = torch.ones(1_000)
    assert not torch.equal(dropout(x, 0.5), dropout(x, 0.5))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (5, 7)])
def test_any_shape(shape):
    assert drop_ones(0.5, shape=shape).shape == shape


def test_transposed_input():
    x = torch.arange(1.0, 13).view(3, 4).t()
    torch.manual_seed(0)
    y = dropout(x, 0.5)
    assert torch.equal(y[y != 0], 2 * x[y != 0])
    assert 0 < (y == 0).sum() < 12


def test_p_0_is_identity():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_the_module_drops_while_training_only():
    x = torch.ones(1_000)
    module = Dropout(0.5)
    assert module.training
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), x)
    assert (module.train()(x) == 0).any()
