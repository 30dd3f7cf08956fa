"""Entropy of attention: against numpy in double precision, and against numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_app.plasticity.entropy import attention_entropy


def causal_probs(B: int = 2, H: int = 3, T: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    scores = 3 * torch.randn(B, H, T, T, generator=torch.Generator().manual_seed(0))
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1).to(dtype)


def by_numpy(probs: Tensor) -> np.ndarray:
    """(B, H, T)"""
    p = probs.double().numpy()
    return -np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_is_that_of_double_precision_in_nats(dtype: torch.dtype):
    probs = causal_probs(dtype=dtype)
    assert (probs == 0).any()
    found = attention_entropy(probs)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(found, by_numpy(probs).mean((0, 2)), rtol=1e-6)


def test_of_rows_that_look_everywhere_and_at_one_key():
    uniform, one_hot = torch.full((4, 8), 1 / 8), torch.eye(8)[:4]
    probs = torch.stack([uniform, one_hot])[None]
    torch.testing.assert_close(attention_entropy(probs), torch.tensor([math.log(8), 0.0]))


def test_normalised_a_causal_head_that_looks_everywhere_has_1():
    visible = torch.arange(1, 7)
    uniform = torch.ones(6, 6).tril() / visible[:, None]
    probs = torch.stack([uniform, torch.eye(6)])[None]
    torch.testing.assert_close(attention_entropy(probs, visible=visible, normalised=True), torch.tensor([1.0, 0.0]))


def test_normalised_leaves_out_rows_that_see_one_key():
    probs, visible = causal_probs(), torch.arange(1, 8)
    expected = (by_numpy(probs)[:, :, 1:] / np.log(np.arange(2, 8))).mean((0, 2))
    np.testing.assert_allclose(attention_entropy(probs, visible=visible, normalised=True), expected, rtol=1e-6)
    np.testing.assert_allclose(attention_entropy(probs, visible=visible), by_numpy(probs).mean((0, 2)), rtol=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_padding_does_not_count(normalised: bool):
    probs = causal_probs(B=1, T=5)
    padding = torch.full((1, 3, 2, 5), 1 / 5)
    padded = torch.cat([torch.cat([probs, padding], 2), torch.full((1, 3, 7, 5), torch.nan)])
    visible = torch.tensor([[1, 2, 3, 4, 5, 0, 0], [0] * 7])
    found = attention_entropy(padded, visible=visible, normalised=normalised)
    alone = attention_entropy(probs, visible=torch.arange(1, 6), normalised=normalised)
    torch.testing.assert_close(found, alone)


def test_without_any_row_it_is_not_a_number():
    assert attention_entropy(torch.ones(1, 2, 1, 1), visible=torch.ones(1).int(), normalised=True).isnan().all()


def test_normalised_needs_to_know_what_is_visible():
    with pytest.raises(ValueError, match="normalised=True needs `visible`"):
        attention_entropy(causal_probs(), normalised=True)
    with pytest.raises(ValueError, match=r"visible is \(3,\); it must be \(7,\) or \(2, 7\)"):
        attention_entropy(causal_probs(), visible=torch.ones(3), normalised=True)
