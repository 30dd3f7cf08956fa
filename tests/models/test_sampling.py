"""Draws against distributions made by hand, and their frequencies against the softmax."""

import pytest
import torch

from lightning_app.models.sampling import filter_min_p, filter_top_k, filter_top_p, penalise_repetition, sample

P = torch.tensor([0.15, 0.5, 0.05, 0.3])  # ids by probability: 1, 3, 0, 2
DRAWS = 20_000  # the standard error of a frequency is at most 0.0035


def frequencies(p, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = sample(p.log().expand(DRAWS, -1), generators=generator, **options)
    assert tokens.shape == (DRAWS,)
    return tokens.bincount(minlength=len(p)) / DRAWS


def kept(logits):
    return torch.isfinite(logits).nonzero().flatten().tolist()


def test_temperature_0_is_argmax():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, temperature=0), logits.argmax(-1))
    assert torch.equal(sample(logits, temperature=0, top_k=3, top_p=0.5), logits.argmax(-1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"temperature": 0.5}, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        ({"temperature": 1e6}, [0.25, 0.25, 0.25, 0.25]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 99}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.79}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.81}, [3 / 19, 10 / 19, 0, 6 / 19]),
        ({"min_p": 0.31}, [0, 0.625, 0, 0.375]),
        ({"min_p": 0.29}, [3 / 19, 10 / 19, 0, 6 / 19]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0, 0.625, 0, 0.375]),
        ({"temperature": 0.5, "top_p": 0.6}, [0, 1, 0, 0]),  # the temperature comes first: id 1 alone has 0.68
    ],
)
def test_frequencies(options, expected):
    found = frequencies(P, **options)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0.015)
    assert not found[torch.tensor(expected) == 0].any()


@pytest.mark.parametrize(
    ("top_k", "ids"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps(top_k, ids):
    logits = P.log()
    found = filter_top_k(logits, top_k)
    assert kept(found) == ids
    assert torch.equal(found[ids], logits[ids])


@pytest.mark.parametrize(
    ("top_p", "ids"),
    [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, ids):
    logits = P.log()
    found = filter_top_p(logits, top_p)
    assert kept(found) == ids
    assert torch.equal(found[ids], logits[ids])


def test_rows_are_filtered_apart():
    rows = torch.stack([P.log(), P.log().flip(0)])
    assert [kept(row) for row in filter_top_k(rows, 2)] == [[1, 3], [0, 2]]
    assert [kept(row) for row in filter_top_p(rows, 0.6)] == [[1, 3], [0, 2]]
    assert sample(rows, top_k=1).tolist() == [1, 2]


def test_the_generator_is_the_only_source_of_chance():
    logits = torch.zeros(100, 50)
    state = torch.get_rng_state()
    first, again, other = (sample(logits, generators=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_precision_is_divided_in_single():
    """Two neighbours in bf16: at temperature 0.01 they are 0.78125 apart, in bf16 they would be 1."""
    logits = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16).expand(DRAWS, -1)
    tokens = sample(logits, temperature=0.01, generators=torch.Generator().manual_seed(0))
    assert tokens.double().mean().item() == pytest.approx(0.68595, abs=0.015)  # and not 0.731


def test_the_logits_stay_as_they_are():
    logits = P.log()[None].clone()
    sample(logits, temperature=0.5, top_k=2, top_p=0.5)
    assert torch.equal(logits, P.log()[None])


def test_min_p_is_measured_after_the_temperature():
    hot = P.log() / 2
    assert kept(filter_min_p(P.log(), 0.5)) == [1, 3]
    assert kept(filter_min_p(hot, 0.5)) == [0, 1, 3]  # sqrt(0.15 / 0.5) = 0.55


def test_the_penalty_lowers_scores_of_either_sign():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_each_row_draws_from_its_own_generator():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))

    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = sample(logits, generators=generators([5, 6, 7, 8]))
    single = [sample(logits[i : i + 1], generators=generators([5 + i])) for i in range(4)]
    assert torch.equal(together, torch.cat(single))


@pytest.mark.parametrize(
    "options", [{"temperature": 1e-38}, {"temperature": 1e-46}, {"top_p": 1e-46}, {"top_p": 1e-300}]
)
def test_the_smallest_options_take_the_likeliest(options):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(sample(logits, **options), logits.argmax(-1))
