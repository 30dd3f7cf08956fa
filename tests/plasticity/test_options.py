"""The schedule's options: what they say, and what a run or a model must have for them."""

import pytest

from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.importance import EntropyImportance, GradientImportance, TaylorImportance
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.options import AdvancedOptions, ScheduleOptions, check_run, check_units
from lightning_app.plasticity.schedule import PlasticitySchedule


def test_defaults_that_depend_on_others():
    options = ScheduleOptions(pruning_level=0.4)
    assert options.kinds == ["heads"]
    assert options.levels == {"heads": 0.4, "neurons": 0.4}
    assert [type(x) for x in options.strategies.values()] == [TaylorImportance, GradientImportance]
    assert ScheduleOptions(advanced=AdvancedOptions(neuron_level=0.1)).levels["neurons"] == 0.1
    assert ScheduleOptions(targets=[]).kinds == []
    plan = ScheduleOptions(advanced=AdvancedOptions(warmup="stable", regrow=1, automatic=True)).plan
    assert (plan.until_stable, plan.regrows, plan.automatic) == (True, True, True)


def test_in_python_the_advanced_ones_may_be_a_dict():
    given = {"neuron_level": 0.1, "regrow": 1}
    assert PlasticitySchedule(advanced=given).options.advanced == AdvancedOptions(neuron_level=0.1, regrow=1)
    with pytest.raises(
        InputError, match=r"cannot make a AdvancedOptions of .*regrows.* its options are neuron_level, "
    ):
        PlasticitySchedule(advanced={"regrows": 1})


def test_what_is_regrown_is_pruned_first():
    options = ScheduleOptions(cycles=2, pruning_level=0.5, advanced=AdvancedOptions(regrow=1))
    assert [options.dead_after_pruning("heads", 8, cycle) for cycle in (1, 2)] == [3, 5]
    assert [options.dead_after_pruning("neurons", 8, cycle) for cycle in (1, 2)] == [2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["heads", "heads"]}, "give each once"),
        ({"eval_freq": 0}, "eval_freq is 0; it must be at least 1"),
        ({"cycles": 0}, "cycles is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        ScheduleOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_batches": 0}, "sample_batches is 0; it must be at least 1"),
        ({"layer_lr_factor": 0.0}, "layer_lr_factor is 0; it must be above 0"),
        ({"regrow": 1, "keep_removed": False}, "regrow needs keep_removed"),
        ({"warmup": "stable", "stability_window": 2}, "window is 2"),
    ],
)
def test_bad_advanced_options(options, message):
    with pytest.raises(InputError, match=message):
        AdvancedOptions(**options)


def test_a_plan_that_is_longer_than_the_run():
    options = ScheduleOptions(cycles=2, training_steps=10, warmup_steps=5, finetuning_steps=5)
    check_run(options, steps=30)
    with pytest.raises(InputError, match="2 cycles of 5 \\+ 5 steps after 10 take 30 steps, and the run has 29"):
        check_run(options, steps=29)
    advanced = AdvancedOptions(warmup="stable")
    stable = ScheduleOptions(cycles=1, training_steps=0, warmup_steps=69, finetuning_steps=1, advanced=advanced)
    with pytest.warns(UserWarning, match="tested over 70 steps, and warmup_steps is 69"):
        check_run(stable, steps=100)


def test_a_level_that_the_layers_cannot_give():
    model = Decoder(vocab_size=31, block_size=16, embedding_dim=32, layers=2, heads=4)
    heads, neurons = units_of(model, "heads"), units_of(model, "neurons")
    check_units(ScheduleOptions(pruning_level=0.75), heads)
    with pytest.raises(InputError, match=r"level 0.75 takes 7 of 8 \(1 of them regrown\).* keeps at least 1"):
        check_units(ScheduleOptions(pruning_level=0.75, advanced=AdvancedOptions(regrow=1)), heads)
    with pytest.raises(InputError, match=r"neurons: level 0.9 takes 230 of 256, .* keeps at least 32"):
        check_units(ScheduleOptions(pruning_level=0.9), neurons)
    with pytest.raises(InputError, match="cannot score neurons: choose another strategy"):
        check_units(ScheduleOptions(advanced=AdvancedOptions(neuron_strategy=EntropyImportance())), neurons)
