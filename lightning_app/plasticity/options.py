"""The options of `PlasticitySchedule`, checked by themselves, against the run, and against the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from lightning_app.data.sources import as_options
from lightning_app.errors import InputError
from lightning_app.plasticity.importance import GradientImportance, Importance, TaylorImportance
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.measurements import check_path
from lightning_app.plasticity.phases import Plan
from lightning_app.plasticity.pruner import Surgery
from lightning_app.plasticity.pruning import dead_after
from lightning_app.plasticity.stabilization import WINDOW, StabilityRule, judged
from lightning_app.plasticity.units import Units

MULTIPLE = 32  # widths of feed-forward layers: others lose half of the gain
LEAST = {
    "keep_per_layer": 0,
    "regrow": 0,
    "tolerance": 0,
    "layer_lr_factor": 0,
    "head_lr_factor": 0,
    "sample_batches": 1,
    "sample_batch_size": 1,
}


@dataclass(frozen=True)
class AdvancedOptions:
    """What few runs change of a `PlasticitySchedule`.

    Args:
        neuron_level: as `pruning_level`, of the neurons, if they are a target; None: as of the heads.
        strategy: how importance is measured; None: `TaylorImportance`.
        neuron_strategy: of neurons; None: `GradientImportance`.
        warmup: `steps`, or `stable`: until the training loss is (`stability_rule`), for `warmup_steps` at most.
        stability_rule: `slope` (the t value of the slope), or `quadratic` (the seed's); see `plasticity.stabilization`.
        stability_window: losses that the rule looks at; None: the rule's own.
        keep_per_layer: heads that a layer keeps at least; 0 lets a layer be skipped.
        keep_removed: remember what is removed, in the checkpoint too, so that it can be regrown as it was.
        regrow: heads that come back in each cycle, where they are missed most; as many more are pruned.
        regrow_how: `undo` as they were, `new` with new weights.
        automatic: stop, and go back to the state before the cycle, when the cross-entropy on the sample is not back
            within `tolerance` of the cycle's start after its fine-tuning.
        tolerance: share of the cross-entropy.
        layer_lr_factor: of the learning rate of blocks that lost heads, while they are fine-tuned; the seed's 3 did
            harm in our experiment.
        head_lr_factor: of the updates of living heads in layers that lost some, as far as they did; 1: none.
        sample_batches: of the sample that everything is measured on.
        sample_batch_size: sequences of each.
        datasets: other texts to measure importance on, path to weight, instead of the validation text.
        combine: how their importance is combined.
        save_importance: write each cycle's to `importance/` in the run's folder, for `SavedImportance`.

    Raises:
        InputError: an option out of range, or two that contradict each other.
    """

    neuron_level: float | list[float] | None = None
    strategy: Importance | None = None
    neuron_strategy: Importance | None = None
    warmup: Literal["steps", "stable"] = "steps"
    stability_rule: StabilityRule = "slope"
    stability_window: int | None = None
    keep_per_layer: int = 1
    keep_removed: bool = True
    regrow: int = 0
    regrow_how: Literal["undo", "new"] = "undo"
    automatic: bool = False
    tolerance: float = 0.01
    layer_lr_factor: float = 1.0
    head_lr_factor: float = 1.0
    sample_batches: int = 8
    sample_batch_size: int = 8
    datasets: dict[str, float] | None = None
    combine: Literal["mean", "max"] = "mean"
    save_importance: bool = True

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.layer_lr_factor == 0:
            raise InputError("layer_lr_factor is 0; it must be above 0")
        if self.regrow and not self.keep_removed:
            raise InputError("regrow needs keep_removed: true: what was removed is measured by its old weights")
        judged([], rule=self.stability_rule, window=self.stability_window)  # refuses a window that its rule cannot use


@dataclass(frozen=True)
class ScheduleOptions:
    """What a `PlasticitySchedule` is to do.

    After cycle c of C, round(pruning_level x heads x c / C) heads are dead in all. Dead heads are never chosen again.

    Args:
        cycles: with `advanced.automatic` at most.
        pruning_level: share of the heads that are dead at the end, 0 to below 1; or that after each cycle.
        targets: heads, neurons, or both; None: heads. An empty list: nothing is measured or changed.
        training_steps: optimizer steps before the first cycle.
        warmup_steps: of each cycle before its analysis; with `advanced.warmup: stable` at most.
        finetuning_steps: of each cycle after its pruning.
        eval_freq: steps between evaluations on the sample while a cycle lasts.
        surgery: `remove` cuts out, `mask` multiplies by 0.
        advanced: see `AdvancedOptions`.

    Raises:
        InputError: an option out of range, or two that contradict each other.
    """

    cycles: int = 3
    pruning_level: float | list[float] = 0.3
    targets: list[Kind] | None = None
    training_steps: int = 1000
    warmup_steps: int = 200
    finetuning_steps: int = 300
    eval_freq: int = 25
    surgery: Surgery = "remove"
    advanced: AdvancedOptions = AdvancedOptions()

    def __post_init__(self) -> None:
        object.__setattr__(self, "advanced", as_options(AdvancedOptions, self.advanced))  # a dict, in Python
        if len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"targets are {self.kinds}: give each once")
        for kind, level in self.levels.items():
            _check_level(kind, level, self.cycles)
        if self.eval_freq < 1:
            raise InputError(f"eval_freq is {self.eval_freq}; it must be at least 1")
        assert self.plan.cycles  # refuses what cannot be a plan

    @property
    def kinds(self) -> list[Kind]:
        """What is pruned."""
        return ["heads"] if self.targets is None else self.targets

    @property
    def levels(self) -> dict[Kind, float | list[float]]:
        neurons = self.pruning_level if self.advanced.neuron_level is None else self.advanced.neuron_level
        return {"heads": self.pruning_level, "neurons": neurons}

    @cached_property
    def strategies(self) -> dict[Kind, Importance]:
        return {
            "heads": self.advanced.strategy or TaylorImportance(),
            "neurons": self.advanced.neuron_strategy or GradientImportance(),
        }

    @cached_property
    def plan(self) -> Plan:
        return Plan(
            self.cycles,
            self.training_steps,
            self.warmup_steps,
            self.finetuning_steps,
            until_stable=self.advanced.warmup == "stable",
            regrows=self.advanced.regrow > 0,
            automatic=self.advanced.automatic,
        )

    def regrown(self, kind: Kind) -> int:
        """How many units of a kind come back in each cycle."""
        return self.advanced.regrow if kind == "heads" else 0

    def dead_after_pruning(self, kind: Kind, total: int, cycle: int) -> int:
        """How many of `total` units are dead once those of a cycle are pruned; what is regrown then is pruned first."""
        return dead_after(self.levels[kind], total, cycle, self.cycles) + self.regrown(kind)


def _check_level(kind: str, level: float | list[float], cycles: int) -> None:
    levels = level if isinstance(level, list) else [level]
    if not all(0 <= share < 1 for share in levels):
        raise InputError(f"the level of {kind} is {level}; it must lie in [0, 1)")
    dead_after(level, 1, 0, cycles)  # refuses a list of another length, or one that falls


def check_run(options: ScheduleOptions, *, steps: int) -> None:
    """The plan and the texts, against a run of so many optimizer steps.

    Raises:
        InputError: it takes more steps, or a text is not there.
    """
    plan, window = options.plan, options.advanced.stability_window or WINDOW
    for path in options.advanced.datasets or {}:
        check_path(path)
    if plan.most_steps > steps:
        raise InputError(
            f"{plan.cycles} cycles of {plan.warmup_steps} + {plan.finetuning_steps} steps after "
            f"{plan.training_steps} take {plan.most_steps} steps, and the run has {steps}: lower cycles or "
            "steps, or raise trainer.max_steps"
        )
    if plan.until_stable and options.advanced.stability_rule == "slope" and plan.warmup_steps < window:
        rank_zero_warn(
            f"the slope of the loss is tested over {window} steps, and warmup_steps is "
            f"{plan.warmup_steps}: it will never be called stable; lower stability_window"
        )


def check_units(options: ScheduleOptions, units: Units) -> None:
    """Strategy and level, against a model as it was before anything was removed.

    Raises:
        InputError: the strategy cannot score such units, or a layer would keep too few of them.
    """
    kind, (layers, n) = units.kind, units.shape
    strategy, level = options.strategies[kind], options.levels[kind]
    if kind not in strategy.kinds:
        raise InputError(f"{strategy.name} cannot score {kind}: choose another strategy for them")
    most = max(options.dead_after_pruning(kind, layers * n, cycle) for cycle in range(1, options.cycles + 1))
    least = options.advanced.keep_per_layer if kind == "heads" else MULTIPLE
    if most > layers * (n - least):
        more = f" ({options.regrown(kind)} of them regrown)" if options.regrown(kind) else ""
        raise InputError(
            f"{kind}: level {level} takes {most} of {layers * n}{more}, and each of the {layers} layers "
            f"keeps at least {least}: lower the level, or keep_per_layer"
        )
    if kind == "neurons" and n % MULTIPLE:
        rank_zero_warn(f"feed-forward layers have {n} neurons, no multiple of {MULTIPLE}; what is left of them is one")
