"""Both attention kernels against loops over positions, the choice between them, and the cache.

Dropout: how many zeros, which scale, which gradient, and no pattern among neighbours.
"""

import pytest
import torch

from lightning_app.models import attention
from lightning_app.models.attention import MATMUL_UP_TO, Dropout, KVCache, apply_dropout, attend, choose_kernel, visible

B, H, K = 2, 3, 5
KERNELS = ["matmul", "sdpa"]
SIZES = [(6, 6), (1, 1), (1, 7), (3, 7)]  # new positions, all positions


def tensors(new, total, dtype=torch.float32):
    rng = torch.Generator().manual_seed(new * 100 + total)
    shapes = [(B, H, new, K), (B, H, total, K), (B, H, total, K)]
    return [torch.randn(shape, generator=rng).to(dtype) * 2 for shape in shapes]


def padding(kind, total):
    """The first row is padded on the left or right by two (or misses its third position), the second row is whole."""
    if kind == "none":
        return None
    mask = torch.ones(B, total, dtype=torch.bool)
    hidden = {"left": slice(0, 2), "right": slice(max(total - 2, 0), total), "hole": slice(2, 3)}[kind]
    mask[0, hidden] = False
    return mask


def by_loops(q, k, v, mask):
    """softmax(q k / sqrt(K)) v, one query at a time, over the keys that it may see, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    result = torch.zeros(q.shape, dtype=torch.float64)
    past = k.shape[2] - q.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            here = past + t
            seen = [s for s in range(here + 1) if mask is None or mask[b, s] or s == here]
            for h in range(q.shape[1]):
                weights = (k[b, h, seen] @ q[b, h, t] / q.shape[-1] ** 0.5).softmax(0)
                result[b, h, t] = weights @ v[b, h, seen]
    return result


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
@pytest.mark.parametrize("kind", ["none", "left", "right", "hole"])
@pytest.mark.parametrize(("new", "total"), SIZES)
def test_kernels_equal_loops(kernel, kind, new, total):
    q, k, v = tensors(new, total)
    mask = padding(kind, total)
    found = attend(q, k, v, mask=mask, kernel=kernel)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_loops(q, k, v, mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16_is_close(kernel):
    q, k, v = tensors(6, 6, torch.bfloat16)
    found = attend(q, k, v, mask=padding("left", 6), kernel=kernel)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), by_loops(q, k, v, padding("left", 6)), rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["none", "left"])
def test_gradients_of_the_kernels_agree(kind):
    gradients = []
    for kernel in KERNELS:
        qkv = [x.requires_grad_() for x in tensors(6, 6)]
        y = attend(*qkv, mask=padding(kind, 6), kernel=kernel)
        gradients.append(torch.autograd.grad((y * torch.arange(1.0, K + 1)).sum(), qkv))
    assert min(g.abs().max() for g in gradients[0]) > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_dropout_falls_on_the_weights(kernel):
    """With the unit matrix as values the result is the matrix of weights itself."""
    S = 128
    q, k = torch.randn(2, 1, 2, S, 8, generator=torch.Generator().manual_seed(0))
    v = torch.eye(S).expand(1, 2, S, S)
    torch.manual_seed(0)
    weights = attend(q, k, v, kernel=kernel)
    dropped = attend(q, k, v, dropout=0.25, kernel=kernel)
    seen = torch.ones(S, S, dtype=torch.bool).tril().expand_as(weights)
    kept = dropped != 0
    assert (dropped[seen] == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)


def test_visible_by_hand():
    assert visible(None, new=2, total=4, device=torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    found = visible(mask, new=2, total=4, device=torch.device("cpu"))
    assert found.shape == (2, 1, 2, 4)
    assert found[:, 0].int().tolist() == [[[0, 0, 1, 0], [0, 0, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_a_query_on_padding_sees_itself():
    """Else its softmax would be over nothing, and its NaN would reach every weight by the gradient."""
    q, k, v = tensors(6, 6)
    for kernel in KERNELS:
        found = attend(q, k, v, mask=torch.zeros(B, 6, dtype=torch.bool), kernel=kernel)
        torch.testing.assert_close(found, v, rtol=0, atol=1e-6)


FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("dtype", "device", "length", "dropout", "amx", "expected"),
    [
        (FP32, "cpu", 8, 0.0, False, "sdpa"),
        (FP32, "cpu", 8, 0.1, False, "matmul"),
        (FP32, "cpu", 9_999, 0.1, True, "matmul"),
        (BF16, "cpu", MATMUL_UP_TO, 0.0, False, "matmul"),
        (FP16, "cpu", MATMUL_UP_TO, 0.0, False, "matmul"),
        (BF16, "cpu", MATMUL_UP_TO + 1, 0.0, False, "sdpa"),
        (BF16, "cpu", MATMUL_UP_TO, 0.0, True, "sdpa"),
        (BF16, "cpu", MATMUL_UP_TO, 0.1, True, "matmul"),
        (FP32, "cuda", 8, 0.1, False, "sdpa"),
        (BF16, "cuda", 8, 0.0, False, "sdpa"),
        (BF16, "mps", 8, 0.1, False, "sdpa"),
    ],
)
def test_choice_of_kernel(monkeypatch, dtype, device, length, dropout, amx, expected):
    monkeypatch.setattr(attention, "_cpu_has_amx", lambda: amx)
    sizes = {"dtype": dtype, "device_type": device, "length": length, "dropout": dropout}
    assert choose_kernel("auto", **sizes) == expected
    assert choose_kernel("sdpa", **sizes) == "sdpa"
    assert choose_kernel("matmul", **sizes) == "matmul"


def test_cache_returns_all_that_it_was_given():
    cache = KVCache([(B, H, 5, K)] * 2, dtype=torch.float32, device=torch.device("cpu"))
    _, k, v = tensors(5, 5)
    for start, end in ((0, 3), (3, 4), (4, 5)):
        assert cache.length == start
        for layer in (0, 1):
            keys, values = cache.extend(layer, k[:, :, start:end] + layer, v[:, :, start:end] - layer)
            assert torch.equal(keys, k[:, :, :end] + layer)
            assert torch.equal(values, v[:, :, :end] - layer)
        cache.advance(end - start)
    with pytest.raises(ValueError, match="6 positions do not fit a cache of 5"):
        cache.extend(0, k[:, :, :1], v[:, :, :1])


# Dropout


N = 200_003  # not a multiple of four, in which the random numbers come


def drop_ones(p, *, dtype=torch.float32, seed=0, shape=(N,)):
    torch.manual_seed(seed)
    return apply_dropout(torch.ones(shape, dtype=dtype), p)


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
    y = apply_dropout(x, 0.25)
    zero = y == 0
    assert 0 < zero.sum() < x.numel()
    torch.testing.assert_close(y[~zero], x[~zero] / 0.75)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_gradient_mask_is_the_forward_mask(p):
    x = torch.ones(1_001, requires_grad=True)
    torch.manual_seed(0)
    y = apply_dropout(x, p)
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
    assert not torch.equal(apply_dropout(x, 0.5), apply_dropout(x, 0.5))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (5, 7)])
def test_any_shape(shape):
    assert drop_ones(0.5, shape=shape).shape == shape


def test_transposed_input():
    x = torch.arange(1.0, 13).view(3, 4).t()
    torch.manual_seed(0)
    y = apply_dropout(x, 0.5)
    assert torch.equal(y[y != 0], 2 * x[y != 0])
    assert 0 < (y == 0).sum() < 12


def test_p_0_is_identity():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_dropout(x, 0.0), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_the_module_drops_while_training_only():
    x = torch.ones(1_000)
    module = Dropout(0.5)
    assert module.training
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), x)
    assert (module.train()(x) == 0).any()
