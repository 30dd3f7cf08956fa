"""Each way to measure importance on models of which the answer is known, and leaves the model as it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import token_nll
from lightning_app.plasticity.importance import (
    EntropyImportance,
    GradientImportance,
    GradientNormImportance,
    HardConcreteImportance,
    Importance,
    LearnedGates,
    LeaveOneOut,
    MagnitudeImportance,
    RandomImportance,
    Sample,
    SavedImportance,
    SeedImportance,
    SubsetImportance,
    TaylorImportance,
    gate_gradients,
    mean_entropy,
    measured,
    save_importance,
)
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.scores import seed_score, spearman
from lightning_app.plasticity.units import Units

Build = Callable[[str], Backbone]
USELESS = [(0, 1), (1, 0), (1, 3)]  # heads whose output rows are zeroed


def sample_of(model: Backbone, *, batches: int = 2, rows: int = 3) -> Sample:
    """Sequences that the model itself is likely to write, so that heads that speak are missed."""
    generator = torch.Generator().manual_seed(5)
    made = []
    with torch.no_grad():
        for _ in range(batches):
            ids = torch.randint(31, (rows, 12), generator=generator)
            made.append(replace(Batch.of_texts(ids), targets=model(ids).argmax(-1)))
    return Sample(made, lambda batch: token_nll(model(batch.input_ids), batch.targets).mean(-1))


@pytest.fixture
def model(build: Build) -> Backbone:
    return build("decoder")


@pytest.fixture
def units(model: Backbone) -> Units:
    return units_of(model, "heads")


@pytest.fixture
def useless(model: Backbone, units: Units) -> Tensor:
    """(L, H) True where a head says nothing."""
    found = torch.zeros(units.shape, dtype=torch.bool)
    with torch.no_grad():
        for i, unit in USELESS:
            found[i, unit] = True
            part = units.layers[i].in_out
            part.parameter.index_fill_(part.dim, part.index[unit], 0.0)
    return found


def lowest(scores: Tensor, n: int) -> set[tuple[int, int]]:
    order = scores.flatten().argsort()[:n].tolist()
    return {(at // scores.shape[1], at % scores.shape[1]) for at in order}


def digest(model: nn.Module) -> str:
    state = model.state_dict()
    return hashlib.sha256(b"".join(name.encode() + x.numpy().tobytes() for name, x in state.items())).hexdigest()


STRATEGIES: list[Importance] = [
    GradientImportance(),
    GradientImportance(moment=2),
    GradientImportance(normalise=True),
    GradientNormImportance(),
    MagnitudeImportance(),
    EntropyImportance(),
    EntropyImportance(reverse=True),
    SeedImportance(),
    RandomImportance(),
    LeaveOneOut(),
    HardConcreteImportance(steps=3),
    SubsetImportance(steps=3),
    TaylorImportance(),
]
each_strategy = pytest.mark.parametrize(
    "strategy", STRATEGIES, ids=lambda s: f"{s.name}{sorted(vars(s).values(), key=str)}"
)


# For all of them


@each_strategy
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_model_is_left_as_it_was(model: Backbone, units: Units, strategy: Importance, training: bool):
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[0, 2] = dead[1, 1] = True
    units.set_mask(torch.tensor([[True, True, True, False], [True] * 4]))  # one is masked, others will be removed
    units.remove(dead)
    model.train(training)
    model.transformer["ln_f"].eval()  # type: ignore[index, union-attr]
    sample, before = sample_of(model), digest(model)
    flags = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    scores = measured(strategy, units, sample, keep=4)
    assert digest(model) == before
    assert [part.training for part in model.modules()] == flags
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert scores.shape == units.shape
    assert scores.dtype == torch.float64
    assert torch.equal(scores.isnan(), dead)


@each_strategy
def test_twice_the_same(model: Backbone, units: Units, strategy: Importance):
    sample = sample_of(model)
    one, two = (measured(strategy, units, sample, keep=4) for _ in range(2))
    assert torch.equal(one, two)


@each_strategy
def test_neurons_are_scored_or_refused(model: Backbone, strategy: Importance):
    neurons, sample = units_of(model, "neurons"), sample_of(model, batches=1)
    if strategy.kinds == ("heads",):
        with pytest.raises(InputError, match=f"{strategy.name} cannot score neurons"):
            measured(strategy, neurons, sample, keep=100)
        return
    dead = torch.ones(neurons.shape, dtype=torch.bool)
    dead[:, :3] = False  # few are left: some go through them one by one
    neurons.remove(dead)
    scores = measured(strategy, neurons, sample, keep=4)
    assert torch.equal(scores.isnan(), dead)


@each_strategy
def test_without_gradients(model: Backbone, units: Units, strategy: Importance):
    """Those that need them say so; the others work."""
    sample = sample_of(model)
    needs = (GradientImportance, TaylorImportance, GradientNormImportance, LearnedGates, SeedImportance)
    with torch.no_grad():
        if isinstance(strategy, needs):
            with pytest.raises(InputError, match=r"cannot be measured under torch\.no_grad"):
                measured(strategy, units, sample, keep=4)
        else:
            assert measured(strategy, units, sample, keep=4).isfinite().all()
    with torch.inference_mode():
        if isinstance(strategy, needs):
            with pytest.raises(InputError, match=r"cannot be measured under torch\.no_grad"):
                measured(strategy, units, sample, keep=4)


# Known answers


@pytest.mark.parametrize(
    "strategy",
    [
        GradientImportance(),
        GradientImportance(moment=2),
        GradientImportance(normalise=True),
        LeaveOneOut(),
        HardConcreteImportance(steps=60, weight=0.1),
        SubsetImportance(steps=80, lr=0.2),
    ],
    ids=lambda s: s.name,
)
def test_heads_that_say_nothing_are_the_least_important(
    model: Backbone, units: Units, useless: Tensor, strategy: Importance
):
    scores = measured(strategy, units, sample_of(model), keep=5)
    if isinstance(strategy, GradientImportance | LeaveOneOut):
        assert not scores[useless].any()
        assert (scores[~useless].abs() > 1e-6).all()
        scores = scores.abs()
    assert lowest(scores, 3) == set(USELESS)


def test_magnitude_and_gradient_norm_by_hand(model: Backbone, units: Units):
    expected, of_gradients = torch.zeros(units.shape).double(), torch.zeros(units.shape).double()
    sample = sample_of(model, batches=1)
    sample.loss(sample.batches[0]).mean().backward()
    for i in range(2):
        attention = model.transformer["h"][i].attn  # type: ignore[index, union-attr]
        for h in range(4):
            rows = torch.arange(8) + 8 * h
            for found, what in ((expected, "data"), (of_gradients, "grad")):
                w, b, out = (
                    getattr(p, what) for p in (attention.c_attn.weight, attention.c_attn.bias, attention.c_proj.weight)
                )
                own = [*(x[rows + 32 * j].flatten() for x in (w, b) for j in range(3)), out[:, rows].flatten()]
                found[i, h] = torch.cat(own).double().norm()
    model.zero_grad()
    torch.testing.assert_close(measured(MagnitudeImportance(), units, sample, keep=4), expected)
    torch.testing.assert_close(
        measured(GradientNormImportance(), units, sample, keep=4), of_gradients, rtol=1e-4, atol=0
    )
    entropy = mean_entropy(units, sample)
    seeds = measured(SeedImportance(), units, sample, keep=4)
    torch.testing.assert_close(seeds, -seed_score(entropy, of_gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", [GradientNormImportance(), SeedImportance()], ids=lambda s: s.name)
def test_frozen_weights_have_the_same_gradients(model: Backbone, units: Units, strategy: Importance):
    """As beside LoRA's adapters."""
    sample = sample_of(model, batches=1)
    expected = measured(strategy, units, sample, keep=4)
    model.requires_grad_(False)
    torch.testing.assert_close(measured(strategy, units, sample, keep=4), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_entropy_prefers_heads_that_look_at_little(model: Backbone, units: Units):
    with torch.no_grad():
        attention = model.transformer["h"][0].attn  # type: ignore[index, union-attr]
        attention.c_attn.weight[:8].zero_()  # head 0 looks everywhere alike
        attention.c_attn.bias[:8].zero_()
    scores = measured(EntropyImportance(), units, sample_of(model), keep=4)
    assert lowest(scores, 1) == {(0, 0)}
    assert torch.equal(measured(EntropyImportance(reverse=True), units, sample_of(model), keep=4), -scores)


def test_leave_one_out_is_the_loss_of_a_masked_model(model: Backbone, units: Units):
    sample, expected = sample_of(model), torch.zeros(units.shape).double()
    whole = sample.mean_loss()
    for i in range(2):
        for unit in range(4):
            mask = torch.ones(units.shape, dtype=torch.bool)
            mask[i, unit] = False
            units.set_mask(mask)
            expected[i, unit] = sample.mean_loss() - whole
    units.set_mask(torch.ones(units.shape, dtype=torch.bool))
    found = measured(LeaveOneOut(), units, sample, keep=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_taylor_is_minus_g_plus_half_h(model: Backbone, units: Units):
    sample = sample_of(model)
    gradients, length = gate_gradients(units, sample), sample.batches[0].input_ids.shape[1]
    expected = -gradients.mean(0) + 0.5 * length * (gradients**2).mean(0)
    torch.testing.assert_close(measured(TaylorImportance(), units, sample, keep=4), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_a_subset_has_exactly_so_many(units: Units, keep: int):
    """As the temperature falls, gates become 0 or 1, and sum to the budget."""
    strategy, alive = SubsetImportance(), torch.ones(units.shape, dtype=torch.bool)
    alive[0, 0] = keep == 8
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gates = strategy.gates(torch.zeros(units.shape), alive, 3.0, keep, generator)
        assert float(gates.sum()) == pytest.approx(keep, abs=0.02)
        assert int((gates > 0.5).sum()) == keep
        assert not gates[~alive].any()


def test_the_mean_gate_of_a_subset_is_its_share_of_draws_without_replacement():
    """Gumbel and top-k draw one by one (Plackett and Luce): the chance of a pair is p_i p_j / (1 - p_i), both ways."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    p, alive, generator = logits.softmax(0), torch.ones(1, 5, dtype=torch.bool), torch.Generator().manual_seed(3)
    pairs = p[:, None] * p / (1 - p[:, None])
    pairs.fill_diagonal_(0)
    drawn = torch.stack([SubsetImportance().gates(logits[None], alive, 1.0, 2, generator)[0] for _ in range(2000)])
    torch.testing.assert_close(drawn.mean(0), pairs.sum(0) + pairs.sum(1), rtol=0, atol=0.04)


@pytest.mark.parametrize("logit", [-1.0, 0.5, 2.0])
def test_the_penalty_of_hard_concrete_is_how_often_its_gates_are_open(logit: float):
    """Louizos, Welling and Kingma 2018 (arXiv:1712.01312), eq. 12, beside the class's own draws."""
    strategy, many = HardConcreteImportance(weight=1.0), torch.ones(200_000, 1, dtype=torch.bool)
    gates = strategy.gates(torch.full((200_000, 1), logit), many, 0, 0, torch.Generator().manual_seed(1))
    penalty = strategy.penalty(torch.full((1, 1), logit), torch.ones(1, 1, dtype=torch.bool))
    assert float(penalty) == pytest.approx(float((gates > 0).float().mean()), abs=0.003)


def test_hard_concrete_closes_what_costs_more_than_it_gives(model: Backbone, units: Units, useless: Tensor):
    sample = sample_of(model)
    few = measured(HardConcreteImportance(steps=60, weight=0.0), units, sample, keep=4)
    many = measured(HardConcreteImportance(steps=60, weight=50.0), units, sample, keep=4)
    assert (many < few).all()
    assert (many[useless] < 0).all()
    gates = HardConcreteImportance().gates(
        torch.tensor([[-9.0, 9.0]]), torch.ones(1, 2).bool(), 0, 1, torch.Generator()
    )
    assert gates.tolist() == [[0.0, 1.0]]  # exactly


def test_strategies_agree_with_the_oracle(model: Backbone, units: Units):
    sample = sample_of(model, batches=4)
    oracle = measured(LeaveOneOut(), units, sample, keep=4)
    assert spearman(measured(GradientImportance(), units, sample, keep=4).flatten(), oracle.flatten()) > 0.4


def test_random_is_of_its_seed(units: Units, model: Backbone):
    sample = sample_of(model, batches=1)
    one, two = (measured(RandomImportance(seed), units, sample, keep=4) for seed in (0, 1))
    assert not torch.equal(one, two)
    assert len(one.unique()) == 8


# The gradient


@pytest.mark.parametrize("family", ["decoder", "gpt2", "llama"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_gradients_are_finite_differences(build: Build, family: str, kind: str):
    model = build(family).double()
    units = units_of(model, kind)  # type: ignore[arg-type]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch.input_ids)
        return nn.functional.cross_entropy(logits.mT, batch.targets, reduction="none").mean(-1)

    sample = Sample(sample_of(model, batches=1, rows=2).batches, loss)
    found = gate_gradients(units, sample)
    assert found.shape == (2, *units.shape)
    h = 1e-2
    for i, unit in ((0, 1), (1, 2)):
        losses = []
        for value in (1 + h, 1 - h):
            units.open_gates()
            gates = torch.ones(units.shape)
            gates[i, unit] = value
            units.set_gates(gates)
            with torch.no_grad():
                losses.append(sample.loss(sample.batches[0]))
            units.close_gates()
        slope = (losses[0] - losses[1]) / (2 * h)
        torch.testing.assert_close(found[:, i, unit], slope, rtol=1e-3, atol=1e-5)  # some compute norms in float32


def test_gradients_of_each_sequence_are_those_of_it_alone(model: Backbone, units: Units):
    sample = sample_of(model)
    together = gate_gradients(units, sample)
    assert together.shape == (6, 2, 4)
    rows = [b.each(lambda x, r=r: x[r : r + 1]) for b in sample.batches for r in range(3)]
    alone = torch.cat([gate_gradients(units, Sample([row], sample.loss)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)
    found = measured(GradientImportance(), units, sample, keep=4)
    torch.testing.assert_close(found, alone.abs().mean(0), rtol=1e-3, atol=1e-6)
    squares = measured(GradientImportance(moment=2), units, sample, keep=4)
    torch.testing.assert_close(squares, alone.square().mean(0), rtol=1e-3, atol=1e-6)
    normalised = measured(GradientImportance(normalise=True), units, sample, keep=4)
    torch.testing.assert_close(normalised.norm(dim=1), torch.ones(2).double())


def test_a_dead_heads_gradient_is_how_much_it_is_missed(model: Backbone, units: Units, useless: Tensor):
    mask = torch.ones(units.shape, dtype=torch.bool)
    mask[0, 0] = mask[0, 1] = False  # the second says nothing
    units.set_mask(mask)
    sample = sample_of(model)
    assert not gate_gradients(units, sample)[:, ~mask].any()
    missed = gate_gradients(units, sample, open_masks=True).abs().mean(0)
    assert missed[0, 0] > 1e-3
    assert missed[0, 1] == 0
    assert torch.equal(units.mask, mask)
    assert not gate_gradients(units, sample)[:, ~mask].any()


# Saved


def test_saved_and_read_again(model: Backbone, units: Units, tmp_path: Path):
    sample, path = sample_of(model), tmp_path / "importance" / "heads.json"
    scores = measured(GradientImportance(), units, sample, keep=4)
    scores[0, 1] = math.nan
    save_importance(path, scores, kind="heads", strategy="GradientImportance")
    assert json.loads(path.read_text())["importance"][0][1] is None
    found = measured(SavedImportance(str(path)), units, sample, keep=4)
    measured_there = ~scores.isnan()
    assert torch.equal(found[measured_there], scores[measured_there])
    assert found[0, 1] < scores[measured_there].min()  # gone already there: the least important
    with pytest.raises(InputError, match="SavedImportance cannot score neurons"):
        measured(SavedImportance(str(path)), units_of(model, "neurons"), sample, keep=4)


def test_saved_of_another_size_is_stretched_over_depth(model: Backbone, tmp_path: Path):
    path = tmp_path / "map.json"
    save_importance(path, torch.tensor([[0.0, 1], [2, 3], [4, 5]]), kind="heads", strategy="x")
    strategy, sample = SavedImportance(str(path)), sample_of(model, batches=1)
    assert measured(strategy, units_of(model, "heads"), sample, keep=4).tolist() == [[0.5] * 4, [4.5] * 4]
    deep = Decoder(vocab_size=31, block_size=16, embedding_dim=32, layers=5, heads=2)
    found = measured(strategy, units_of(deep, "heads"), sample, keep=4)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]).double())


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"importance": [[1, 2], [3]], "kind": "heads"}', '{"kind": "heads"}']
)
def test_a_file_that_holds_no_map(tmp_path: Path, content: str | None):
    path = tmp_path / "map.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"map\.json holds no importance map"):
        SavedImportance(str(path))


def test_options_out_of_range():
    with pytest.raises(InputError, match="moment is 3"):
        GradientImportance(moment=3)
    with pytest.raises(InputError, match="steps is 0"):
        SubsetImportance(steps=0)
