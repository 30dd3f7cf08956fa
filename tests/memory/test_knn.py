"""Next-token distributions out of neighbours, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.knn import (
    interpolated,
    joined_with_memory,
    mixture_weights,
    neighbour_weights,
    p_of_target,
    spread,
    tuned_interpolation,
)

INF = math.inf
LN2 = math.log(2)


def neighbour_distribution(distances: Tensor, tokens: Tensor, *, temperature: float, vocab_size: int) -> Tensor:
    found = (tokens >= 0) & distances.isfinite()
    return spread(neighbour_weights(distances, found, temperature=temperature), tokens, vocab_size=vocab_size)


def test_neighbours_with_the_same_token_add_up():
    distances = torch.tensor([[0.0, LN2, LN2]])  # weights 1, 1/2, 1/2 -> 1/2, 1/4, 1/4
    p = neighbour_distribution(distances, torch.tensor([[3, 1, 3]]), temperature=1.0, vocab_size=4)
    torch.testing.assert_close(p, torch.tensor([[0.0, 0.25, 0.0, 0.75]]))


def test_the_temperature_divides_the_distances():
    distances = torch.tensor([[0.0, 2 * LN2]])
    p = neighbour_distribution(distances, torch.tensor([[0, 1]]), temperature=2.0, vocab_size=2)
    torch.testing.assert_close(p, torch.tensor([[2 / 3, 1 / 3]]))


def test_what_is_missing_weighs_nothing():
    distances = torch.tensor([[5.0, INF], [INF, INF], [1.0, 1.0]])
    tokens = torch.tensor([[1, -1], [-1, -1], [0, -1]])
    p = neighbour_distribution(distances, tokens, temperature=1.0, vocab_size=2)
    assert p.tolist() == [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("offset", [0.0, -1e6, 1e6])
def test_distances_of_any_size_give_no_nan(offset: float):
    distances = torch.tensor([[0.0, LN2]], dtype=torch.float64) + offset
    p = neighbour_distribution(distances.float(), torch.tensor([[0, 1]]), temperature=1.0, vocab_size=2)
    assert torch.isfinite(p).all()
    assert float(p.sum()) == pytest.approx(1)


def test_interpolation_by_hand():
    log_p = torch.tensor([[0.5, 0.5]]).log()
    mixed = interpolated(log_p, torch.tensor([[1.0, 0.0]]), lam=0.25)
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.625, 0.375]]))


def test_nothing_found_or_no_weight_changes_no_bit():
    log_p = torch.randn(2, 5).log_softmax(-1)
    found = torch.tensor([[0.0] * 5, [1.0, 0, 0, 0, 0]])
    assert torch.equal(interpolated(log_p, found, lam=0.5)[0], log_p[0])
    assert not torch.equal(interpolated(log_p, found, lam=0.5)[1], log_p[1])
    assert torch.equal(interpolated(log_p, found, lam=0.0), log_p)


def test_all_weight_to_the_memory():
    mixed = interpolated(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]), lam=1.0)
    assert mixed.exp().tolist() == [[1.0, 0.0]]


def test_joined_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    scores = torch.tensor([[math.log(2), 0.0, 0.0, -INF]])  # masses: token 1 gets 2 + 1, token 2 gets 1
    p = joined_with_memory(logits, scores, torch.tensor([[1, 1, 2, -1]])).softmax(-1)
    torch.testing.assert_close(p, torch.tensor([[1 / 7, 4 / 7, 2 / 7]]))


def test_joined_without_entries_changes_no_bit():
    logits = torch.randn(2, 3)
    assert torch.equal(joined_with_memory(logits, torch.empty(2, 0), torch.empty(2, 0, dtype=torch.int64)), logits)
    none = joined_with_memory(logits, torch.full((2, 1), -INF), torch.full((2, 1), -1))
    assert torch.equal(none, logits)


@pytest.mark.parametrize("score", [-1e4, 0.0, 1e4])
def test_joined_has_finite_gradients(score: float):
    logits = torch.zeros(1, 3, requires_grad=True)
    scores = torch.tensor([[score, score, -INF]], requires_grad=True)
    joined_with_memory(logits, scores, torch.tensor([[0, 1, -1]])).log_softmax(-1)[0, 0].backward()
    assert logits.grad is not None
    assert scores.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(scores.grad).all()


def test_p_of_target_is_that_of_the_distribution():
    distances, tokens = torch.rand(7, 5), torch.randint(0, 3, (7, 5))
    targets = torch.randint(0, 3, (7, 1))
    p = neighbour_distribution(distances, tokens, temperature=0.3, vocab_size=3).gather(1, targets)[:, 0]
    torch.testing.assert_close(p_of_target(distances, tokens == targets, temperature=0.3), p)


def test_tuning_finds_weight_and_temperature():
    torch.manual_seed(0)
    distances = torch.rand(4000, 8).sort(-1).values * 10
    weights = (-distances / 2.0).softmax(-1)  # of the true temperature, 2
    hit = torch.multinomial(weights, 1)
    from_memory = torch.rand(4000, 1) < 0.4  # of the true weight, 0.4
    match = from_memory & (torch.arange(8) == hit)
    p_model = torch.where(from_memory[:, 0], 1e-4, 0.5)
    best = tuned_interpolation(p_model, distances, match)
    assert best.lam == pytest.approx(0.4, abs=0.05)
    assert best.temperature == pytest.approx(2.0, rel=0.2)
    worse = tuned_interpolation(p_model, distances, match, lams=[0.0], temperatures=[1.0], rounds=0)
    assert best.nats < worse.nats == pytest.approx(-float(p_model.double().log().mean()))


def test_tuning_leaves_a_useless_memory_alone():
    best = tuned_interpolation(torch.full((9,), 0.5), torch.ones(9, 2), torch.zeros(9, 2, dtype=torch.bool))
    assert best.lam == 0
    assert best.nats == pytest.approx(LN2)


def test_mixture_weights_by_hand():
    # -sum log(w p1 + (1 - w) p2) with p1 = (1, 0), p2 = (0, 1) over 3 tokens, two of the first kind: w = 2/3
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(mixture_weights(p), torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))


def test_mixture_weights_have_the_fewest_nats_of_a_grid():
    torch.manual_seed(0)
    p = torch.rand(200, 3).double()

    def nats(weights: torch.Tensor) -> float:
        return -float((p @ weights).log().mean())

    best = nats(mixture_weights(p, steps=500))
    grid = [(a / 20, b / 20) for a in range(21) for b in range(21 - a)]
    assert all(nats(torch.tensor([a, b, 1 - a - b]).double()) >= best - 1e-6 for a, b in grid)


def test_nothing_to_tune_on_is_a_mistake():
    with pytest.raises(InputError, match="0 tokens to tune"):
        tuned_interpolation(torch.empty(0), torch.empty(0, 2), torch.empty(0, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="0 tokens"):
        mixture_weights(torch.empty(0, 2))
