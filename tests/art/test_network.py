"""A network of categories: what it remembers, its loss, and which inputs it calls novel."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.art.network import ART, SPAN, TEXTS
from lightning_app.art.rules import overlapping
from lightning_app.errors import InputError
from lightning_app.former import options_of_today

NAN = math.nan


def degrees(*angles: float) -> Tensor:
    """Points of the unit circle."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def art(width: int = 2, **options: Any) -> ART:
    return ART(width, **options_of_today({"novelty": "constant", **options}, "ART"))


def learned(*angles: float, **options: Any) -> ART:
    """One that has learned these angles, one call each."""
    network = art(**options)
    for angle in angles:
        network.learn(degrees(angle))
    return network


def clusters(n: int, *, seed: int = 0, width: int = 16, centres: int = 12, noise: float = 0.3) -> Tensor:
    """(n, width) draws from as many Gaussians, which are the same for every seed."""
    means = torch.randn(centres, width, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    return means[torch.randint(centres, (n,), generator=g)] + noise * torch.randn(n, width, generator=g)


def state(network: ART) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_state(network: ART, before: dict[str, Tensor]) -> None:
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0, equal_nan=True)


# Repeats


@pytest.mark.parametrize("width", [1, 3, 64, 768])
@pytest.mark.parametrize("kind", ["cosine", "fuzzy"])
def test_what_comes_again_is_known_at_a_vigilance_of_one(kind: Any, width: int):
    """In fp32 the cosine of a vector with itself is 1 up to some rounding."""
    network = art(width, kind=kind, vigilance=1.0)
    inputs = clusters(30, width=width) if width > 1 else torch.tensor([[2.0], [-1.0]])
    for _ in range(3):
        network.learn(inputs)
    for one in inputs:
        network.learn(one[None])
    assert len(network) == len(inputs)
    assert not network.is_novel(inputs).any()
    others = inputs + torch.linspace(0.1, 0.2, width) * torch.tensor([1.0, -1.0]).repeat(width)[:width]
    assert network.is_novel(others).all() or (kind, width) == ("cosine", 1)


@pytest.mark.parametrize("vigilance", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["cosine", "fuzzy"])
def test_rows_of_zeros_open_one_category(kind: Any, vigilance: float):
    network = art(2, kind=kind, vigilance=vigilance)
    for _ in range(3):
        network.learn(torch.zeros(4, 2))
    assert len(network) == 1
    assert network.loss(torch.zeros(5, 2)).item() == pytest.approx(0, abs=1e-6)
    assert kind == "fuzzy" or network.is_novel(degrees(10, 100)).all()


# Loss


def test_the_loss_is_the_seeds():
    """Resonance 1 - cos with the best category, 0.1 where none matches, 0 before there is any."""
    assert art().loss(degrees(0, 30)) == 0
    network = learned(0, 90, learning_rate=1.0)
    assert len(network) == 2
    assert network.vigilance == pytest.approx(0.8)
    assert network.loss(degrees(30)).item() == pytest.approx(1 - math.cos(math.radians(30)))
    assert network.loss(degrees(70)).item() == pytest.approx(1 - math.cos(math.radians(20)))
    assert network.loss(degrees(45)).item() == pytest.approx(0.1)
    assert network.loss(3 * degrees(30, 45)).item() == pytest.approx((0.1 + 1 - math.cos(math.radians(30))) / 2)
    assert learned(0, novelty_penalty=0.7).loss(degrees(90)).item() == pytest.approx(0.7)


def test_margin_pushes_away_from_the_category_that_it_does_not_belong_to():
    network = learned(0, novelty="margin")
    for angle in (40, 44, 60, 180):
        expected = max(0.0, math.cos(math.radians(angle)) - 0.8 + 0.1)
        assert network.loss(degrees(angle)).item() == pytest.approx(expected, abs=1e-6)


def test_drift_holds_a_novel_state_to_that_of_the_averaged_model():
    network = learned(0, novelty="drift")
    found = network.loss(degrees(10, 90), degrees(170, 60)).item()
    by_hand = (1 - math.cos(math.radians(10)) + 1 - math.cos(math.radians(30))) / 2
    assert found == pytest.approx(by_hand)  # 10 degrees are known: what the averaged model says is not looked at


@pytest.mark.parametrize(("novelty", "slope"), [("constant", 0), ("margin", -1), ("drift", -1)])
def test_which_novel_inputs_have_a_gradient(novelty: str, slope: int):
    """Towards larger angles (away from the category; towards the averaged model) the loss falls, or stays constant."""
    network = learned(0, novelty=novelty)
    angle = torch.tensor([math.radians(40)], requires_grad=True)
    embedding = torch.stack([angle.cos(), angle.sin()], dim=-1)
    loss = network.loss(embedding, degrees(70))
    (gradient,) = torch.autograd.grad(loss, angle, allow_unused=True, materialize_grads=True)
    assert gradient.sign().item() == slope


@pytest.mark.parametrize("kind", ["cosine", "fuzzy"])
@pytest.mark.parametrize("normalize", ["none", "center", "whiten"])
@pytest.mark.parametrize("novelty", ["constant", "margin", "drift"])
def test_the_gradient_is_that_of_a_loop_and_goes_through_the_embedding_alone(kind: Any, normalize: Any, novelty: Any):
    vigilance = {"cosine": 0.85, "fuzzy": 0.83}[kind] - 0.3 * (normalize == "whiten" and kind == "cosine")
    network = art(16, kind=kind, normalize=normalize, novelty=novelty, vigilance=vigilance)
    network.learn(clusters(60))
    x, averaged = clusters(40, seed=1, noise=0.8), clusters(40, seed=2)
    novel = network.is_novel(x)
    assert 3 < novel.sum() < 37

    def by_hand(embedding: Tensor, average: Tensor) -> Tensor:
        def coded(one: Tensor) -> Tensor:
            if normalize != "none":
                one = one - network.standardised.mean
            if normalize == "whiten":
                one = network.standardised.whitener @ one
            elif normalize == "center" and kind == "fuzzy":
                one = one / network.standardised.scatter.sqrt()
            if kind == "cosine":
                return one / one.norm()
            return torch.cat([one.sigmoid(), 1 - one.sigmoid()])

        code = coded(embedding)
        prototypes = network.prototypes[: len(network)]
        common = [torch.minimum(code, w).sum() for w in prototypes]
        matches = [code @ w for w in prototypes] if kind == "cosine" else [c / 16 for c in common]
        sizes = [1.0] * len(prototypes) if kind == "cosine" else [0.001 + float(w.sum()) for w in prototypes]
        choices = [float(m.detach()) / size for m, size in zip(matches, sizes, strict=True)]
        fitting = [i for i, m in enumerate(matches) if m >= network.vigilance] or range(len(matches))
        match = matches[max(fitting, key=lambda i: choices[i])]
        if match >= network.vigilance:
            return 1 - match
        if novelty == "constant":
            return torch.tensor(0.1)
        if novelty == "margin":
            return (match - network.vigilance + 0.1).clamp_min(0)
        one, other = code, coded(average)
        return 1 - one @ other / (one.norm() * other.norm())

    before = state(network)
    gradients, losses = [], []
    for whole in (True, False):
        leaf = x.clone().requires_grad_()
        loss = network.loss(leaf, averaged) if whole else sum(map(by_hand, leaf, averaged)) / len(leaf)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    assert (gradients[0][~novel].abs().sum(-1) > 0).all()
    assert (gradients[0][novel].abs().sum() > 0) == (novelty != "constant")
    assert_same_state(network, before)
    assert not any(tensor.requires_grad for tensor in network.state_dict().values())


def test_autocast_changes_nothing():
    network = art(16, normalize="whiten", novelty="margin", vigilance=0.9)
    network.learn(clusters(200))
    x = clusters(300, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = network.loss(x), network.resonate(x)
    assert torch.equal(inside[0], network.loss(x))
    assert torch.equal(inside[1].match, network.resonate(x).match)


def test_a_module_in_half_precision_keeps_its_categories_in_full():
    network, other = art(16, normalize="whiten"), art(16, normalize="whiten").to(torch.bfloat16)
    for some in clusters(90).split(30):
        network.learn(some)
        other.learn(some)
    assert_same_state(other, network.state_dict())


# Learning


def test_a_call_learns_what_calls_with_one_embedding_each_learn():
    """Where nothing follows once per call: the same vigilance, no merging, no mean."""
    x, states = clusters(80), []
    for rows in (1, 80):
        network = art(16, vigilance=0.9, capacity=9, merge_at=1.0)
        for some in x.split(rows):
            network.learn(some)
        states.append(state(network))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert states[0]["opened"] > 9


def test_what_a_call_did_is_counted():
    network = art()
    assert network.learn(degrees(0, 90)) == {"births": 2, "known": 0, "match": 0.0, "drift": 0.0}
    counts = network.learn(degrees(20, 180))
    assert (counts["births"], counts["known"]) == (1, 0.5)
    assert counts["match"] == pytest.approx((math.cos(math.radians(20)) + math.cos(math.radians(90))) / 2, abs=1e-6)
    towards = 0.95 * degrees(0) + 0.05 * degrees(20)
    assert counts["drift"] == pytest.approx(1 - float(towards[0, 0] / towards.norm()), abs=1e-6)
    assert network.learn(torch.zeros(0, 2)) == {}


def test_the_first_inputs_of_a_category_move_it_faster():
    network = learned(0, 20, learning_rate=0.1, fast_learning_rate=0.5, fast_inputs=2)
    torch.testing.assert_close(network.prototypes[:1], degrees(10))  # half-way
    network.learn(degrees(20))
    slow = 0.9 * degrees(10) + 0.1 * degrees(20)
    torch.testing.assert_close(network.prototypes[:1], slow / slow.norm())


def test_the_least_used_is_evicted_and_no_id_is_used_twice():
    network = learned(0, 0, 90, 180, 180, capacity=3)
    assert network.ids.tolist() == [0, 1, 2]
    network.learn(degrees(270), torch.tensor([[7, 8]]))
    assert network.ids.tolist() == [0, 3, 2]
    assert network.counts.tolist() == [2, 1, 2]
    assert network.born.tolist() == [0, 5, 3]
    assert network.used.tolist() == [1, 5, 4]
    assert (int(network.seen), int(network.opened)) == (6, 4)
    torch.testing.assert_close(network.prototypes, degrees(0, 270, 180))
    assert network.texts[1, :, :2].tolist() == [[7, 8], [-1, -1], [-1, -1]]


def test_categories_that_came_to_overlap_become_one_and_the_others_keep_their_ids():
    """0 and 40 degrees are two at vigilance 0.8; 19.2 moves the first to 14.4, whose cosine with 40 is above 0.9."""
    network = art(learning_rate=0.5)
    for text, angle in enumerate((0, 40, 120, 120, 19.2, 19.2)):
        before = state(network)
        network.learn(degrees(angle), torch.tensor([[text]]))
    torch.testing.assert_close(before["prototypes"][:3], torch.cat([degrees(9.6, 40), degrees(120)]))
    assert before["counts"][:3].tolist() == [2, 1, 2]
    assert len(network) == 2
    assert network.ids[:3].tolist() == [0, 2, -1]  # the last took the free place
    assert network.counts[:3].tolist() == [4, 2, 0]
    joined = 3 * degrees(14.4) + degrees(40)
    torch.testing.assert_close(network.prototypes[:2], torch.cat([joined / joined.norm(), degrees(120)]))
    assert network.born[:2].tolist() == [0, 2]
    assert network.used[:2].tolist() == [5, 3]
    assert sorted(network.texts[0, :, 0].tolist()) == [0, 1, 5]  # of 0, 1, 4, 5 the one that matched least is gone
    assert sorted(network.texts[1, :, 0].tolist()) == [-1, 2, 3]
    network.learn(degrees(240))
    assert network.ids[:3].tolist() == [0, 2, 3]
    assert network.texts[2].unique().tolist() == [-1]


@pytest.mark.parametrize(("merge_at", "left"), [(0.5, 1), (0.95, 2), (1.0, 2)])
def test_merge_at_says_how_alike_they_must_be(merge_at: float, left: int):
    assert len(learned(0, 40, 19.2, 19.2, learning_rate=0.5, merge_at=merge_at)) == left


@pytest.mark.parametrize("kind", ["cosine", "fuzzy"])
def test_merged_categories_lose_no_input_and_can_still_be_matched(kind: Any):
    """Fuzzy categories merge once the vigilance falls, as it may with a quantile; until then they never do."""
    g, merged = torch.Generator().manual_seed(0), 0
    network = art(3, kind=kind, vigilance_quantile=0.5, learning_rate=0.8, merge_at=0.3)
    for n in range(1, 60):
        vigilance = 0.8 if kind == "cosine" else 0.9 if n < 40 else 0.7
        network.threshold.fill_(vigilance)
        if kind == "fuzzy" and n == 40:
            assert merged == 0
        size = len(network)
        births = network.learn(torch.randn(6, 3, generator=g))["births"]
        merged += size + births - len(network)
        ids, counts = network.ids[: len(network)], network.counts[: len(network)]
        assert counts.sum() == network.seen == 6 * n
        assert len(ids.unique()) == len(ids)
        assert ids.min() >= 0
        best = {"cosine": network.prototypes.norm(dim=-1), "fuzzy": network.prototypes.sum(-1) / 3}[kind]
        assert (best[: len(network)] >= vigilance).all()
    assert merged >= 3
    assert network.opened == len(network) + merged


def test_fuzzy_categories_of_a_fixed_vigilance_never_overlap_so_none_are_looked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lightning_app.art.network.overlapping", None)  # not called
    for vigilance in (0.5, 0.8, 0.95):
        network = art(16, kind="fuzzy", vigilance=vigilance, learning_rate=0.5, capacity=40, merge_at=0.0)
        for some in clusters(400, noise=0.5).split(20):
            network.learn(some)
            every = torch.arange(len(network))
            prototypes, counts = network.prototypes[: len(network)], network.counts
            assert overlapping(network.rule, prototypes, counts, every, at=vigilance, vigilance=vigilance) == []
        assert len(network) > 1


def test_typical_texts_are_those_that_match_best():
    network = art(vigilance=0.5)
    angles = (0, 50, 5, 40, 8, 30)
    network.learn(degrees(*angles), torch.arange(len(angles))[:, None] + torch.zeros(1, 40, dtype=torch.int64))
    assert sorted(network.texts[0, :, 0].tolist()) == [0, 2, 4]
    assert (network.texts[0] == network.texts[0, :, :1]).all()
    assert network.texts.shape[1:] == (TEXTS, SPAN) == (3, 32)


def test_newer_texts_come_in_though_older_ones_matched_better():
    network = learned()
    for text in range(3):
        network.learn(degrees(0), torch.tensor([[text]]))
    after = []
    for _ in range(20):
        network.learn(degrees(-10, 10), torch.tensor([[77], [78]]))
        after.append(sorted(network.texts[0, :, 0].tolist()))
    assert after[0] == [0, 1, 2]
    assert {77, 78} & set(after[-1])


def test_a_text_that_comes_again_is_kept_once_with_its_newest_match():
    network = art(vigilance=0.5)
    network.learn(degrees(20, 0, 10, 0, 0), torch.tensor([[5, 6], [7, 8], [5, 6], [7, 8], [7, 8]]))
    assert network.texts[0, :, :3].tolist() == [[5, 6, -1], [7, 8, -1], [-1, -1, -1]]
    best = F.normalize(degrees(0), dim=-1) @ network.prototypes[0]
    assert network.text_match[0, 1].item() == pytest.approx(best.item(), abs=1e-3)


def test_a_category_that_was_not_used_for_twice_as_long_is_drawn_twice_as_often():
    network = art()
    network.learn(degrees(0, 90, 0, 0, 180), torch.tensor([[1], [2], [3], [4], [5]]))
    assert network.used[:3].tolist() == [3, 1, 4]
    drawn = network.drawn_texts(7000, seed=3)
    assert drawn.shape == (7000, SPAN)
    assert set(drawn[:, 1:].unique().tolist()) == {-1}
    shares = drawn[:, 0].bincount(minlength=6) / 7000
    expected = torch.tensor([0, 2 / 21, 4 / 7, 2 / 21, 2 / 21, 1 / 7])  # 4, 2 and 1 inputs ago; the first has 3 texts
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.02)


def test_what_is_drawn_is_a_function_of_the_seed_and_changes_nothing():
    network = art(16, vigilance=0.9)
    network.learn(clusters(60), torch.arange(60)[:, None])
    before, generator = state(network), torch.get_rng_state()
    drawn = [network.drawn_texts(20, seed=seed) for seed in (4, 4, 5)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_state(network, before)


def test_without_texts_none_are_drawn():
    assert art().drawn_texts(4, seed=0).shape == (0, SPAN)
    assert learned(0, 90).drawn_texts(4, seed=0).shape == (0, SPAN)
    network = learned(0, 0, 0)
    network.learn(degrees(90), torch.tensor([[7]]))
    assert network.drawn_texts(9, seed=0)[:, 0].tolist() == [7] * 9  # the other category has none


def test_a_copy_and_a_checkpoint_hold_all_that_is_known():
    network = art(16, normalize="whiten", vigilance_quantile=0.1)
    for some in clusters(200).split(40):
        network.learn(some, torch.arange(40)[:, None])
    other = art(16, normalize="whiten", vigilance_quantile=0.1)
    other.load_state_dict(network.state_dict())
    twin, more = copy.deepcopy(network), clusters(40, seed=3)
    for each in (network, other, twin):
        each.learn(more, torch.arange(40)[:, None])
    assert_same_state(other, network.state_dict())
    assert_same_state(twin, network.state_dict())


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_embeddings_that_are_not_finite_are_named_and_nothing_is_learned(bad: float):
    network = art(16, normalize="whiten")
    network.learn(clusters(40))
    before, x = state(network), clusters(5)
    x[[1, 3], 2] = bad
    with pytest.raises(InputError, match=r"embeddings \[1, 3\] of 5 are not finite"):
        network.learn(x)
    assert_same_state(network, before)


# Anisotropy and vigilance


def test_statistics_run_along_as_numpys_of_all_inputs():
    x = clusters(300) + 5
    for kind in ("cosine", "fuzzy"):
        network = art(16, kind=kind, normalize="center")
        for some in x.split(70):
            network.learn(some)
        np.testing.assert_allclose(network.standardised.mean, x.numpy().mean(0), rtol=1e-5)
    np.testing.assert_allclose(network.standardised.scatter, x.numpy().var(0), rtol=1e-4)
    network = art(16, normalize="whiten")
    network.learn(x)
    np.testing.assert_allclose(network.standardised.scatter, np.cov(x.numpy().T, bias=True), rtol=1e-3, atol=1e-4)


def test_whitened_embeddings_have_unit_covariance():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=g) @ torch.randn(6, 6, generator=g) + 20 * torch.randn(6, generator=g)
    network = art(6, normalize="whiten", vigilance=-1.0)  # one category is soon learned
    network.learn(x[:2000])
    network.learn(x[2000:])
    whitened = network.standardised(x)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(6), rtol=0, atol=0.15)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(6), rtol=0, atol=0.02)


def test_no_category_opens_before_the_mean_has_seen_some_inputs():
    network = art(16, normalize="center")
    assert network.learn(clusters(15)) == {}
    assert len(network) == int(network.seen) == 0
    assert network.learn(clusters(1))["births"] == 1


def test_fewer_inputs_than_features_stay_finite():
    g = torch.Generator().manual_seed(0)
    network = ART(200, normalize="whiten", novelty="margin")
    for _ in range(4):
        network.learn(torch.randn(8, 200, generator=g) + 30)
    x = (torch.randn(8, 200, generator=g) + 30).requires_grad_()
    (gradient,) = torch.autograd.grad(network.loss(x), x)
    assert gradient.isfinite().all()
    assert all(tensor.isfinite().all() for name, tensor in network.named_buffers() if name != "text_match")
    assert len(network) > 1


@pytest.mark.parametrize(("normalize", "found"), [("none", 1), ("center", 2), ("whiten", 2)])
def test_a_common_mean_hides_what_center_and_whiten_tell_apart(normalize: Any, found: int):
    """Two clusters beside a mean ten times as long: all cosines are above 0.95."""
    g, width = torch.Generator().manual_seed(0), 4
    which = torch.randint(2, (400,), generator=g)
    apart = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    x = apart[which] + 0.01 * torch.randn(400, width, generator=g) + torch.tensor([0.0, 10, 0, 0])
    network = art(width, normalize=normalize, vigilance=0.8 if normalize != "whiten" else 0.3, merge_at=1.0)
    for some in x.split(50):
        network.learn(some)
    slots = network.resonate(x).slots
    if normalize == "none":
        assert len(network) == 1
        assert not network.is_novel(torch.tensor([[0.0, 10, 0, 3]])).any()
    elif normalize == "center":
        assert len(network) == found
        assert len(set(zip(slots.tolist(), which.tolist(), strict=True))) == found
    else:
        for slot in slots.unique():
            assert len(which[slots == slot].unique()) == 1


@pytest.mark.parametrize("quantile", [pytest.param(0.05, marks=pytest.mark.slow), 0.2])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"normalize": "center"}, marks=pytest.mark.slow),
        {"normalize": "whiten"},
        {"kind": "fuzzy"},
    ],
)
def test_about_that_share_of_stationary_inputs_is_novel(quantile: float, options: dict[str, Any]):
    """Of held-out ones, within a factor of 2.5, as categories still open; once calibrated, within 2 %."""
    network = art(16, vigilance_quantile=quantile, **options)
    for some in clusters(2000).split(50):
        network.learn(some)
    held_out = clusters(1500, seed=5)
    share = float(network.is_novel(held_out).float().mean())
    assert (0 if "kind" in options else quantile / 2.5) < share < quantile * 2.5  # fuzzy categories open more slowly
    assert len(network) > 5
    known = clusters(600, seed=6)
    network.calibrate(known)
    assert float(network.is_novel(known).float().mean()) == pytest.approx(quantile, abs=1 / 600)
    assert float(network.is_novel(held_out).float().mean()) == pytest.approx(quantile, abs=0.02 + quantile / 10)
    fixed = network.vigilance
    network.learn(10 + clusters(300, seed=7))  # of another kind: a vigilance that follows makes it known
    assert network.vigilance == fixed


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vigilance": 0.7, "vigilance_quantile": 0.2}, "vigilance is 0.7 and vigilance_quantile 0.2"),
        ({"vigilance": 1.2}, r"vigilance is 1.2; with cosine ART it must lie in \[-1, 1\]"),
        ({"vigilance": -0.1, "kind": "fuzzy"}, r"vigilance is -0.1; with fuzzy ART it must lie in \[0, 1\]"),
        ({"vigilance": NAN}, "vigilance is nan"),
        ({"vigilance_quantile": 0.0}, "vigilance_quantile is 0.0; it must lie between 0 and 1"),
        ({"vigilance_quantile": 1.0}, "vigilance_quantile is 1.0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0.0; it must lie in \(0, 1\]"),
        ({"fast_learning_rate": 1.5}, r"fast_learning_rate is 1.5; it must lie in \(0, 1\]"),
        ({"merge_at": -0.5}, r"merge_at is -0.5; it must lie in \[0, 1\]"),
        ({"capacity": 0}, "capacity is 0; it must be at least 1"),
        ({"fast_inputs": -1}, "fast_inputs is -1; it must be at least 0"),
        ({"novelty_penalty": -0.1}, "novelty_penalty is -0.1; it must be at least 0"),
        ({"kind": "fuzzy", "choice_alpha": 0.0}, "choice_alpha is 0.0; it must be above 0"),
        ({"kind": "euclid"}, "kind is 'euclid'; there are cosine, fuzzy"),
        ({"normalize": "centre"}, "normalize is 'centre'; there are none, center, whiten"),
        ({"novelty": "penalty"}, "novelty is 'penalty'; there are drift, margin, constant"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        ART(4, **options_of_today(options, "ART"))
