"""Controllers alone: heads whose worth is given, and a small model whose heads' worth is measured."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import token_nll
from lightning_app.plasticity.controller.networks import (
    FEATURES,
    ANNController,
    Controller,
    ControllerImportance,
    GateLogits,
    HeadMetrics,
    damage_of,
    features_of,
)
from lightning_app.plasticity.importance import LeaveOneOut, Sample, measured
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.scores import spearman

SHAPE = (3, 6)
UPDATES = 80  # of a run of 1,000 steps, less its warm-up
HEAD = (1, 2)


def metrics(worth: Tensor, controller: Controller, generator: torch.Generator, *, measures: bool = True) -> HeadMetrics:
    """What is seen of heads of a given worth (nats per token) while others' numbers jitter."""
    on = controller.gates > 0.5
    jitter = 0.003 * torch.randn(SHAPE, generator=generator).double() * (worth > 0)
    slope = torch.where(on, jitter, -2 * worth)
    damage = worth + 0.3 * jitter if measures else torch.full(SHAPE, math.nan).double()
    entropy = torch.linspace(1.6, 3, worth.numel()).view(SHAPE).double()
    return HeadMetrics(entropy, slope.abs(), torch.full(SHAPE, 100.0) * on, slope, -slope, damage)


def updates_until(controller: Controller, head_is_on: bool, worth: Tensor, **given: bool) -> int:
    generator = torch.Generator().manual_seed(0)
    for update in range(UPDATES):
        controller.update(metrics(worth, controller, generator, **given))
        if bool(controller.gates[HEAD] > 0.5) == head_is_on:
            return update + 1
    raise AssertionError(f"the gate is {float(controller.gates[HEAD]):.3f} after {UPDATES} updates")


def worth(of_head: float) -> Tensor:
    found = torch.linspace(0.003, 0.02, 18).double().view(SHAPE).clone()
    found[HEAD] = of_head
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("of_head", [0.0, -0.01], ids=["useless", "harmful"])
def test_the_network_switches_a_useless_head_off_and_no_other(seed: int, of_head: float):
    controller = ANNController(SHAPE, seed=seed)
    assert controller.gates.min() > 0.95  # all begin open
    assert updates_until(controller, False, worth(of_head)) <= 40
    assert int((controller.gates > 0.5).sum()) == 17


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_network_switches_a_useful_head_on_again(seed: int):
    controller = ANNController(SHAPE, seed=seed)
    closed = torch.zeros(SHAPE, dtype=torch.bool)
    closed[HEAD] = True
    controller.close(closed)
    assert not controller.active(closed | ~closed)[HEAD]
    assert updates_until(controller, True, worth(0.01)) <= 40


def test_a_missed_head_comes_back_by_the_gradient_at_its_gate_alone():
    controller = ANNController(SHAPE)
    closed = torch.zeros(SHAPE, dtype=torch.bool)
    closed[HEAD] = True
    controller.close(closed)
    assert updates_until(controller, True, worth(0.01), measures=False) <= 60


def test_the_weight_is_what_a_head_must_be_worth():
    """Gates whose head is worth less than the weight close, others stay."""
    controller, generator = ANNController(SHAPE, controller_reg_weight=0.01), torch.Generator().manual_seed(0)
    value = torch.tensor([0.001, 0.03]).repeat(9).view(SHAPE).double()
    for _ in range(UPDATES):
        controller.update(metrics(value, controller, generator))
    assert torch.equal(controller.gates > 0.5, value > 0.01)


def test_a_layer_keeps_its_most_open_head_and_one_that_is_gone_is_never_active():
    controller = ANNController(SHAPE)
    controller.gates.copy_(torch.tensor([[0.1, 0.3, 0.2, 0.1, 0.1, 0.1], [0.9] * 6, [0.4, 0.1, 0.1, 0.1, 0.1, 0.3]]))
    there = torch.ones(SHAPE, dtype=torch.bool)
    there[1, 0] = there[2, 0] = False
    assert controller.active(there).int().tolist() == [[0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("make", [ANNController, GateLogits])
def test_the_state_is_all_there_is(make: type[Controller]):
    first, second = make(SHAPE), make(SHAPE)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for _ in range(5):
        first.update(metrics(worth(0.0), first, generators[0]))
    generators[1].set_state(generators[0].get_state())
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        first.update(metrics(worth(0.0), first, generators[0]))
        second.update(metrics(worth(0.0), second, generators[1]))
    assert torch.equal(first.gates, second.gates)
    assert first.gates.min() < 0.9


def test_making_a_controller_draws_nothing():
    torch.manual_seed(0)
    ANNController(SHAPE)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def seen(entropy: float, gradient: Tensor) -> HeadMetrics:
    nothing = torch.zeros(SHAPE)
    return HeadMetrics(torch.full(SHAPE, entropy), gradient, nothing, nothing, nothing, torch.full(SHAPE, math.nan))


def test_the_seeds_rule():
    gradient = torch.linspace(0, 0.002, 18).view(SHAPE)
    controller = GateLogits(SHAPE, controller_reg_weight=0.0)
    controller.update(seen(2.0, gradient))
    change = controller.logits.flatten() - 3
    # entropy; entropy and gradient; entropy and importance, below a gate of 0.9 only
    assert change.tolist() == pytest.approx([-0.15] * 9 + [-0.1] * 9, abs=1e-6)
    controller.logits.fill_(1.0)
    controller.gates.fill_(0.73)
    controller.update(seen(1.0, gradient))
    change = controller.logits.flatten() - 1
    assert change.tolist() == pytest.approx([-0.05] * 9 + [0.0] * 3 + [0.2] * 6, abs=1e-6)


def test_the_seeds_own_rate_takes_20_010_steps_and_ours_210():
    gradient = torch.zeros(SHAPE)

    def steps(scale: float) -> int:
        controller = GateLogits(SHAPE, update_scale=scale, controller_reg_weight=0.0)
        for update in range(3000):
            controller.update(seen(2.0, gradient))
            if controller.gates.max() <= 0.5:
                return 10 * (update + 1)
        raise AssertionError

    assert steps(100.0) in (200, 210)
    assert 19_900 < steps(1.0) < 20_100


def test_plain_logits_follow_the_loss_if_asked():
    for learns in (False, True):
        controller = GateLogits(SHAPE, learn_from_loss=learns)
        missed = seen(1.0, torch.full(SHAPE, 0.01))
        missed = replace(missed, slope=torch.full(SHAPE, -0.1))
        before = controller.logits.clone()
        controller.update(missed)
        assert bool((controller.logits > before).all()) is learns


def test_features_are_bounded_and_those_of_a_removed_head_are_0():
    entropy = torch.rand(SHAPE)
    entropy[0, 0] = math.nan
    nothing = torch.zeros(SHAPE)
    found = features_of(
        HeadMetrics(entropy, torch.rand(SHAPE) * 1e-9, torch.full(SHAPE, 1e9), nothing, nothing, nothing)
    )
    assert found.shape == (*SHAPE, FEATURES)
    assert found.abs().max() <= 1
    assert found[0, 0].tolist() == [0.0] * FEATURES
    assert found[..., 0].flatten()[1:].sort().values.tolist() == pytest.approx(torch.linspace(-1, 1, 17).tolist())


@pytest.fixture
def small() -> tuple[Decoder, Sample]:
    torch.manual_seed(0)
    model = Decoder(vocab_size=32, block_size=16, embedding_dim=32, layers=2, heads=4).eval()
    ids = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    return model, Sample([Batch.of(ids)], lambda b: token_nll(model(b.input_ids), b.targets).mean(-1))


def test_damage_is_that_of_leaving_one_out_whichever_way_the_head_is_now(small: tuple[Decoder, Sample]):
    model, sample = small
    units = units_of(model, "heads")
    expected = measured(LeaveOneOut(), units, sample, keep=0)
    found = damage_of(units, sample, [(0, 1), (1, 3)])
    assert found[0, 1] == pytest.approx(float(expected[0, 1]), abs=1e-9)
    assert int((~found.isnan()).sum()) == 2
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 3] = False
    units.set_mask(mask)
    assert damage_of(units, sample, [(1, 3)])[1, 3] == pytest.approx(float(found[1, 3]), abs=1e-9)
    assert torch.equal(units.mask, mask)


def test_importance_measures_a_share_and_scores_all(small: tuple[Decoder, Sample]):
    model, sample = small
    units, strategy = units_of(model, "heads"), ControllerImportance(share=0.5, steps=40)
    before = model(sample.batches[0].input_ids)
    found = measured(strategy, units, sample, keep=4)
    assert len(strategy.measured) == 4
    assert found.shape == (2, 4)
    assert bool(found.isfinite().all())
    assert torch.equal(found, measured(strategy, units, sample, keep=4))
    assert torch.equal(before, model(sample.batches[0].input_ids))


def test_the_second_output_learns_damage_that_follows_from_the_metrics():
    """On heads that it was not trained on."""
    generator = torch.Generator().manual_seed(0)
    entropy, gradient = torch.rand(6, 8, generator=generator), torch.rand(6, 8, generator=generator)
    damage = (gradient - 0.5 * entropy).double()
    known = torch.rand(6, 8, generator=generator) < 0.5
    nothing = torch.zeros(6, 8)
    given = HeadMetrics(entropy, gradient, nothing, nothing, nothing, damage.where(known, math.nan))
    controller = ANNController((6, 8), controller_lr=0.1)
    controller.learn_damage(given, steps=300)
    with torch.no_grad():
        predicted = controller.predicted_damage(features_of(given)).double()
    assert spearman(predicted[~known], damage[~known]) > 0.8


def test_bad_options():
    with pytest.raises(InputError, match="share is 0"):
        ControllerImportance(share=0)
    with pytest.raises(InputError, match="steps is 0"):
        ControllerImportance(steps=0)
