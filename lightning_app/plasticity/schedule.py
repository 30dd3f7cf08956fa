"""PlasticitySchedule: cycles of warmup, analysis, pruning, regrowth, fine-tuning and evaluation within a fit.

Shapes: L layers, H heads, M neurons.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.models.generation import GenerationOptions
from lightning_app.models.modes import evaluated
from lightning_app.models.ranks import gathered
from lightning_app.plasticity.importance import (
    GradientImportance,
    Importance,
    Sample,
    TaylorImportance,
    gate_gradients,
    mean_entropy,
    save_importance,
)
from lightning_app.plasticity.learning_rates import HeadRates, described, set_layer_factors
from lightning_app.plasticity.maps import log_maps
from lightning_app.plasticity.measurements import (
    check_path,
    cost_of,
    cross_entropy_of,
    importance_of,
    plain,
    samples_of,
)
from lightning_app.plasticity.phases import LASTING, Move, Plan, Position, next_move
from lightning_app.plasticity.pruner import Surgeon, Surgery, check_strategy
from lightning_app.plasticity.pruning import as_mask, choose, choose_widths, dead_after
from lightning_app.plasticity.stabilization import WINDOW, Verdict, quadratic_rule, slope_rule
from lightning_app.plasticity.surgery import Kind, Units
from lightning_app.plasticity.units import units_in
from lightning_app.reports.plasticity import events
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.callbacks.run_log import RunLog, run_folder
from lightning_app.training.callbacks.samples import continued
from lightning_app.training.callbacks.series import log_numbers
from lightning_app.training.lightning_internals.callbacks import reset_best_checkpoint, reset_early_stopping
from lightning_app.training.module import LanguageModule

MULTIPLE = 32  # widths of feed-forward layers: others lose half of the gain
MOST_LOSSES = 1_000  # that stabilisation looks back on


class PlasticitySchedule(RunCallback):
    """Prunes heads (and neurons) of the model in cycles, by evidence, and proves after each event that it is so.

    After cycle c of C, round(pruning_level x heads x c / C) heads are dead in all. Dead heads are never chosen again.

    Args:
        cycles: with `automatic` at most.
        pruning_level: share of the heads that are dead at the end, 0 to below 1; or that after each cycle.
        neuron_level: the same of the neurons, if they are a target; None: as of the heads.
        targets: heads, neurons, or both; None: heads. An empty list: nothing is measured or changed.
        strategy: how importance is measured; None: `TaylorImportance`.
        neuron_strategy: of neurons; None: `GradientImportance`.
        training_steps: optimizer steps before the first cycle.
        warmup_steps: of each cycle before its analysis; with `warmup: stable` at most.
        warmup: `steps`, or `stable`: until the training loss is (`stability_rule`).
        finetuning_steps: of each cycle after its pruning.
        stability_rule: `slope` (the t value of the slope), or `quadratic` (the seed's); see `ops.stabilization`.
        stability_window: losses that the rule looks at; None: the rule's own.
        eval_freq: steps between evaluations on the sample while a cycle lasts.
        surgery: `remove` cuts out, `mask` multiplies by 0.
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
        sample_seed: draws them.
        datasets: other texts to measure importance on, path to weight, instead of the validation text.
        combine: how their importance is combined.
        save_importance: write each cycle's to `importance/` in the run's folder, for `SavedImportance`.

    Raises:
        InputError: an option out of range; in `setup` a plan that the run or the model cannot carry out.
    """

    def __init__(
        self,
        cycles: int = 3,
        pruning_level: float | list[float] = 0.3,
        neuron_level: float | list[float] | None = None,
        targets: list[Kind] | None = None,
        strategy: Importance | None = None,
        neuron_strategy: Importance | None = None,
        training_steps: int = 1000,
        warmup_steps: int = 200,
        warmup: Literal["steps", "stable"] = "steps",
        finetuning_steps: int = 300,
        stability_rule: Literal["slope", "quadratic"] = "slope",
        stability_window: int | None = None,
        eval_freq: int = 25,
        surgery: Surgery = "remove",
        keep_per_layer: int = 1,
        keep_removed: bool = True,
        regrow: int = 0,
        regrow_how: Literal["undo", "new"] = "undo",
        automatic: bool = False,
        tolerance: float = 0.01,
        layer_lr_factor: float = 1.0,
        head_lr_factor: float = 1.0,
        sample_batches: int = 8,
        sample_batch_size: int = 8,
        sample_seed: int = 0,
        datasets: dict[str, float] | None = None,
        combine: Literal["mean", "max"] = "mean",
        save_importance: bool = True,
    ):
        self.targets: list[Kind] = ["heads"] if targets is None else targets
        if len(set(self.targets)) < len(self.targets):
            raise InputError(f"targets are {self.targets}: give each once")
        self.levels = {"heads": pruning_level, "neurons": pruning_level if neuron_level is None else neuron_level}
        for kind, level in self.levels.items():
            _check_level(kind, level, cycles)
        for name, value, least in (
            ("eval_freq", eval_freq, 1),
            ("keep_per_layer", keep_per_layer, 0),
            ("regrow", regrow, 0),
            ("tolerance", tolerance, 0),
            ("layer_lr_factor", layer_lr_factor, 0),
            ("head_lr_factor", head_lr_factor, 0),
            ("sample_batches", sample_batches, 1),
            ("sample_batch_size", sample_batch_size, 1),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
        if layer_lr_factor == 0:
            raise InputError("layer_lr_factor is 0; it must be above 0")
        if regrow and not keep_removed:
            raise InputError("regrow needs keep_removed: true: what was removed is measured by its old weights")
        self.plan = Plan(
            cycles,
            training_steps,
            warmup_steps,
            finetuning_steps,
            until_stable=warmup == "stable",
            regrows=regrow > 0,
            automatic=automatic,
        )
        self.strategies: dict[Kind, Importance] = {
            "heads": strategy or TaylorImportance(),
            "neurons": neuron_strategy or GradientImportance(),
        }
        self.stability_rule, self.stability_window = stability_rule, stability_window
        self.eval_freq, self.surgery, self.keep_per_layer, self.keep_removed = (
            eval_freq,
            surgery,
            keep_per_layer,
            keep_removed,
        )
        self.regrow, self.regrow_how, self.tolerance = regrow, regrow_how, tolerance
        self.layer_lr_factor, self.head_lr_factor = layer_lr_factor, head_lr_factor
        self.sample_batches, self.sample_batch_size, self.sample_seed = sample_batches, sample_batch_size, sample_seed
        self.datasets, self.combine, self.save_importance = datasets, combine, save_importance
        self._reset()
        self._verdict()  # refuses a window that the rule cannot work with

    def _reset(self) -> None:
        self.at = Position() if self.targets else Position("done")
        self._left = Position()  # where `at` was when it last was in a phase that lasts
        self._started = False
        self._losses: list[float] = []  # of this warmup
        self._scores: dict[str, Tensor] = {}  # of this cycle's analysis, by kind
        self._ce_at_start = math.nan  # of this cycle, on the sample
        self._baseline: dict[str, Any] = {}  # what the model cost at first
        self._cost: dict[str, Any] = {}  # and when it was measured last
        self._proved: dict[str, float] = {}  # by event, for the end
        self._factors: Tensor | None = None  # of this cycle's fine-tuning, by head
        self._snapshot: dict[str, Any] | None = None
        self._rates: HeadRates | None = None
        self._kept: dict[str, Any] = {}
        self._units: dict[Kind, Units] = {}
        self._validation: Sample | None = None

    # Before training: what cannot work is refused

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.run.decide_heads(self)
        if not self.targets:
            return
        self._reset()  # an earlier fit's; Lightning loads a checkpoint's state after this hook
        module, data = self.module, self.data
        check_strategy(trainer.strategy)
        if not data.splits.origin("val"):
            raise InputError("plasticity decides by a validation text: give data.val or data.split")
        for path in self.datasets or {}:
            check_path(path)
        for kind in self.targets:
            self._units[kind] = units_in(module, kind)[0]
            self._check_units(self._units[kind])
        steps = module.optimizer_steps()
        if self.plan.most_steps > steps:
            plan = self.plan
            raise InputError(
                f"{plan.cycles} cycles of {plan.warmup_steps} + {plan.finetuning_steps} steps after "
                f"{plan.training_steps} take {plan.most_steps} steps, and the run has {steps}: lower cycles or "
                "steps, or raise trainer.max_steps"
            )
        if self.plan.until_stable and self.stability_rule == "slope" and self.plan.warmup_steps < self._window:
            rank_zero_warn(
                f"the slope of the loss is tested over {self._window} steps, and warmup_steps is "
                f"{self.plan.warmup_steps}: it will never be called stable; lower stability_window"
            )
        if self.layer_lr_factor != 1:
            module.group_by_layer = True

    @property
    def _window(self) -> int:
        return WINDOW if self.stability_window is None else self.stability_window

    def _check_units(self, units: Units) -> None:
        """The levels, against a model as it was before anything was removed."""
        layers, n = units.shape
        strategy = self.strategies[units.kind]
        if units.kind not in strategy.kinds:
            raise InputError(f"{strategy.name} cannot score {units.kind}: choose another strategy for them")
        level = self.levels[units.kind]
        most = max(dead_after(level, layers * n, cycle, self.plan.cycles) for cycle in range(1, self.plan.cycles + 1))
        least = self.keep_per_layer if units.kind == "heads" else MULTIPLE
        most += self.regrow if units.kind == "heads" else 0
        if most > layers * (n - least):
            more = f" ({self.regrow} of them regrown)" if self.regrow and units.kind == "heads" else ""
            raise InputError(
                f"{units.kind}: level {level} takes {most} of {layers * n}{more}, and each of the {layers} layers "
                f"keeps at least {least}: lower the level, or keep_per_layer"
            )
        if units.kind == "neurons" and n % MULTIPLE:
            rank_zero_warn(
                f"feed-forward layers have {n} neurons, no multiple of {MULTIPLE}; what is left of them is one"
            )

    # What is measured with

    def _samples(
        self, trainer: L.Trainer, module: LanguageModule, datasets: dict[str, float] | None
    ) -> list[tuple[float, Sample]]:
        sizes = {"batches": self.sample_batches, "batch_size": self.sample_batch_size}
        return samples_of(module, self.data, datasets, seed=self.sample_seed, **sizes)

    def _sample(self, trainer: L.Trainer, module: LanguageModule) -> Sample:
        """Of the validation text; drawn once, as it is looked at every few steps."""
        if self._validation is None:
            self._validation = self._samples(trainer, module, None)[0][1]
        return self._validation

    def _surgeon(self, trainer: L.Trainer, module: LanguageModule) -> Surgeon:
        ids = self._sample(trainer, module).batches[0]["input_ids"][:2]
        return Surgeon(
            trainer,
            module,
            surgery=self.surgery,
            keep=self.keep_removed,
            compute=lambda: module.backbone.text_logits(ids),
        )

    # The run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.targets:
            return
        self._step, module = trainer.global_step, self.module
        for kind, state in self._kept.items():
            units_in(module, kind)[0].load_kept_state(state)  # type: ignore[arg-type]
        self._kept = {}
        if self._factors is not None:
            self._attach_rates(trainer, module)
        if self._started:
            self._advance(trainer, module)  # if it failed in a phase that does not last
            return
        self._started = True
        shown: dict[str, list[int]] = {kind: list(units_in(module, kind)[0].shape) for kind in self.targets}
        heads = units_in(module, "heads")[0]
        of_heads = sum(part.parameter.numel() for layer in heads.layers for part in layer.parts)
        started = events.PlasticityStarted(
            shape=list(heads.shape),
            units=shown,
            targets=[*self.targets],
            strategy=", ".join(f"{kind}: {self.strategies[kind].name}" for kind in self.targets),
            surgery=self.surgery,
            pruning_level=self.levels["heads"],
            head_parameters_share=of_heads / sum(p.numel() for p in module.backbone.parameters()),
            **asdict(self.plan),
        )
        RunLog.event(trainer, started)
        self._transition(trainer, Move(Position("training", 0), "the run begins"))
        self._look(trainer, module, "baseline", with_text=True)
        self._advance(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.targets or trainer.global_step == self._step:
            return  # within an accumulation
        self._step, module = trainer.global_step, self.module
        if self.at.phase != "done":
            self.at = replace(self.at, steps=self.at.steps + 1)
            if self.at.phase == "warmup" and self.plan.until_stable and not module.skipped_step:
                loss = module.train_loss  # of all batches of the step
                self._losses.append(float(gathered(loss.reshape(1)).mean()))
                del self._losses[:-MOST_LOSSES]
            if self.at.phase in ("warmup", "finetuning") and self.at.steps % self.eval_freq == 0:
                self._evaluate(trainer, module, self.at.phase)
            self._advance(trainer, module)
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            heads = units_in(module, "heads")[0]
            total, alive = math.prod(heads.shape), int(heads.mask.sum())
            numbers = {"sparsity": 1 - alive / total, "active_heads": alive, "total_heads": total}
            module.log_dict({f"plasticity/{name}": float(x) for name, x in numbers.items()})
            module.log("plasticity/cycle", float(self.at.cycle))

    def _advance(self, trainer: L.Trainer, module: LanguageModule) -> None:
        """As many phases on as are due."""
        recovered = True
        while True:
            verdict = self._verdict() if self.at.phase == "warmup" and self.plan.until_stable else None
            move = next_move(self.plan, self.at, stable=bool(verdict and verdict.stable), recovered=recovered)
            if move is None:
                return
            if verdict is not None:
                self._log_verdict(trainer, verdict)
            self._transition(trainer, move)
            recovered = self._enter(trainer, module)

    def _transition(self, trainer: L.Trainer, move: Move) -> None:
        if self.at.phase in LASTING:
            self._left = self.at
        self.at = move.to
        transition = events.PhaseTransition(phase=move.to.phase, cycle=move.to.cycle, reason=move.reason)
        RunLog.event(trainer, transition)
        if move.to.phase not in ("training", "evaluation"):
            rank_zero_info(f"plasticity, cycle {move.to.cycle}: {move.to.phase} ({move.reason})")

    def _enter(self, trainer: L.Trainer, module: LanguageModule) -> bool:
        """What a phase begins with. Returns: whether the loss has recovered (asked of an evaluation)."""
        if self.at.phase == "warmup":
            self._losses = []
        elif self.at.phase == "analysis":
            self._analyse(trainer, module)
        elif self.at.phase == "pruning":
            self._prune(trainer, module)
        elif self.at.phase == "regrowth":
            self._regrow(trainer, module)
        elif self.at.phase == "finetuning":
            self._begin_finetuning(trainer, module)
        elif self.at.phase == "evaluation":
            return self._end_cycle(trainer, module)
        elif self.at.phase == "done":
            self._snapshot = None
        return True

    def _verdict(self) -> Verdict:
        if self.stability_rule == "slope":
            return slope_rule(self._losses, window=self._window)
        return quadratic_rule(self._losses, min_steps=self.stability_window or 20, patience=self.stability_window or 20)

    def _log_verdict(self, trainer: L.Trainer, verdict: Verdict) -> None:
        stabilised = events.Stabilised(
            cycle=self.at.cycle,
            rule=self.stability_rule,
            window=verdict.window,
            statistic=verdict.statistic if math.isfinite(verdict.statistic) else None,
            losses=[*self._losses[-max(verdict.window, 1) :]],
            after=self.at.steps,
            stable=verdict.stable,
            reason=verdict.reason,
        )
        RunLog.event(trainer, stabilised)

    # Phases

    def _analyse(self, trainer: L.Trainer, module: LanguageModule) -> None:
        self._ce_at_start = self._look(trainer, module, "before")
        if self.plan.automatic:
            self._snapshot = self._surgeon(trainer, module).snapshot(self.targets)
        for kind in self.targets:
            units, sample = units_in(module, kind)[0], self._sample(trainer, module)
            total = math.prod(units.shape)
            keep = total - self._dead_wanted(units)
            samples = self._samples(trainer, module, self.datasets)
            with torch.enable_grad(), evaluated(module):  # all of it: token noise and readers are the module's
                scores = importance_of(self.strategies[kind], units, samples, keep=keep, how=self.combine)
                gradient = entropy = None
                if kind == "heads":
                    gradient = gate_gradients(units, sample).abs().mean(0).where(units.mask, math.nan)
                    entropy = mean_entropy(units, sample).where(units.mask, math.nan)
            self._scores[kind] = scores = trainer.strategy.broadcast(scores)
            if kind == "heads":
                matrices = {"importance": scores.where(units.mask, math.nan), "gradient": gradient, "entropy": entropy}
                analysis = events.Analysis(
                    cycle=self.at.cycle,
                    strategy=self.strategies[kind].name,
                    alive=units.mask.int().tolist(),
                    importance=plain(matrices["importance"]),
                    gradient=plain(gradient),
                    entropy=plain(entropy),
                )
                RunLog.event(trainer, analysis)
                log_maps(trainer, {f"plasticity/{name}": matrix for name, matrix in matrices.items()})
            self._save(trainer, scores, kind)

    def _save(self, trainer: L.Trainer, scores: Tensor, kind: Kind) -> None:
        folder = run_folder(trainer)
        if folder and self.save_importance and trainer.is_global_zero:
            path = folder.importance(kind, self.at.cycle)
            save_importance(path, scores, kind=kind, strategy=self.strategies[kind].name)

    def _dead_wanted(self, units: Units) -> int:
        """After this cycle's pruning; what is regrown then is pruned first."""
        wanted = dead_after(self.levels[units.kind], math.prod(units.shape), self.at.cycle, self.plan.cycles)
        return wanted + (self.regrow if units.kind == "heads" else 0)

    def _prune(self, trainer: L.Trainer, module: LanguageModule) -> None:
        surgeon = self._surgeon(trainer, module)
        for kind in self.targets:
            units, scores = units_in(module, kind)[0], self._scores.pop(kind)
            alive = units.mask
            n = max(0, self._dead_wanted(units) - int((~alive).sum()))
            if kind == "neurons":
                dead = choose_widths(scores, alive, n, multiple=MULTIPLE)
                checks = surgeon.kill(kind, dead)
                event: dict[str, Any] = {"removed": dead.sum(1).tolist(), "widths": units.mask.sum(1).tolist()}
            else:
                chosen = choose(scores, alive, n, keep_per_layer=self.keep_per_layer)
                dead = as_mask(chosen, alive.shape)
                checks = surgeon.kill(kind, dead)
                rank = {
                    unit: i + 1 for i, unit in enumerate(sorted(_units_of(alive), key=lambda unit: float(scores[unit])))
                }
                event = {
                    "heads": [list(unit) for unit in chosen],
                    "scores": [float(scores[unit]) for unit in chosen],
                    "reasons": [f"number {rank[unit]} of {len(rank)} from below" for unit in chosen],
                    "alive": units.mask.int().tolist(),
                }
            name = self.strategies[kind].name
            reason = f"the least important by {name}; {int(dead.sum())} {kind} to reach level {self.levels[kind]}"
            RunLog.event(trainer, events.Pruning(cycle=self.at.cycle, target=kind, reason=reason, **event))
            self._prove(trainer, checks)
        reset_best_checkpoint(trainer)
        self._look(trainer, module, "pruned", with_text=True)

    def _regrow(self, trainer: L.Trainer, module: LanguageModule) -> None:
        surgeon = self._surgeon(trainer, module)
        chosen, missed, checks = surgeon.revive("heads", self.regrow, self.regrow_how, self._sample(trainer, module))
        regrowth = events.Regrowth(
            cycle=self.at.cycle,
            heads=[list(unit) for unit in chosen],
            scores=missed,
            how=self.regrow_how,
            reason="missed most: the largest |dL/dgate| at a gate of 0",
            alive=units_in(module, "heads")[0].mask.int().tolist(),
        )
        RunLog.event(trainer, regrowth)
        self._prove(trainer, checks)
        self._look(trainer, module, "regrown")

    def _begin_finetuning(self, trainer: L.Trainer, module: LanguageModule) -> None:
        heads = units_in(module, "heads")[0]
        mask = heads.mask
        lost = {i for i, row in enumerate(mask) if not bool(row.all())}
        for kind in set(self.targets) - {"heads"}:
            lost |= {i for i, row in enumerate(units_in(module, kind)[0].mask) if not bool(row.all())}
        if self.layer_lr_factor != 1:
            set_layer_factors(trainer, dict.fromkeys(lost, self.layer_lr_factor))
        if self.head_lr_factor != 1:
            share = 1 - mask.float().mean(1, keepdim=True)
            self._factors = (1 + (self.head_lr_factor - 1) * share).expand(mask.shape).clone()
            self._attach_rates(trainer, module)
        RunLog.event(trainer, events.LearningRates(groups=described(trainer)))

    def _attach_rates(self, trainer: L.Trainer, module: LanguageModule) -> None:
        assert self._factors is not None
        self._rates = HeadRates(units_in(module, "heads")[0], self._factors)
        self._rates.attach(trainer.optimizers[0])

    def _end_cycle(self, trainer: L.Trainer, module: LanguageModule) -> bool:
        if self.layer_lr_factor != 1:
            set_layer_factors(trainer, {})
        if self._rates is not None:
            self._rates.detach()
        self._rates = self._factors = None
        RunLog.event(trainer, events.LearningRates(groups=described(trainer)))
        ce = self._look(trainer, module, "recovered", with_text=True)
        limit = self._ce_at_start * (1 + self.tolerance)
        if self.plan.automatic and ce > limit:
            self._go_back(trainer, module, ce, limit)
            return False
        return True

    def _go_back(self, trainer: L.Trainer, module: LanguageModule, ce: float, limit: float) -> None:
        assert self._snapshot is not None
        checks = self._surgeon(trainer, module).go_back(self._snapshot)
        rollback = events.Rollback(
            cycle=self.at.cycle,
            ce=ce,
            limit=limit,
            reason=f"{ce:.4f} nats per token after fine-tuning, more than {limit:.4f}: back to before this cycle",
            alive=units_in(module, "heads")[0].mask.int().tolist(),
        )
        RunLog.event(trainer, rollback)
        self._prove(trainer, checks)
        reset_best_checkpoint(trainer)
        self._look(trainer, module, "before")
        self._log_cost(trainer, module, "gone back")

    def _prove(self, trainer: L.Trainer, checks: dict[str, float | int]) -> None:
        RunLog.event(trainer, events.Proof(cycle=self.at.cycle, checks=checks))
        self._proved |= checks

    # What is logged

    def _look(self, trainer: L.Trainer, module: LanguageModule, stage: str, *, with_text: bool = False) -> float:
        """Evaluate, and at stages that a reader compares: what it costs, and what the model writes."""
        ce = self._evaluate(trainer, module, stage)
        if stage in ("baseline", "pruned", "recovered"):
            self._log_cost(trainer, module, stage)
        if with_text:
            name = {"baseline": "baseline", "pruned": f"pruned, cycle {self.at.cycle}"}.get(
                stage, f"fine-tuned, cycle {self.at.cycle}"
            )
            self._log_text(trainer, module, name)
        return ce

    def _evaluate(self, trainer: L.Trainer, module: LanguageModule, stage: str) -> float:
        ce = trainer.strategy.broadcast(cross_entropy_of(module, self._sample(trainer, module)))  # one for all ranks
        sparsity = units_in(module, "heads")[0].sparsity
        ppl = math.exp(min(ce, 50))
        evaluation = events.Evaluation(cycle=self.at.cycle, stage=stage, ce=ce, ppl=ppl, sparsity=sparsity)
        RunLog.event(trainer, evaluation)
        log_numbers(trainer, {"plasticity/sample_ce": ce, "plasticity/sample_ppl": ppl})
        return ce

    def _log_cost(self, trainer: L.Trainer, module: LanguageModule, stage: str) -> None:
        cost = cost_of(module, self._sample(trainer, module))
        if stage == "baseline":
            self._baseline = cost
        else:
            cost["ceiling"] = self._baseline["flops_per_token"] / cost["flops_per_token"]
            cost["measured"] = self._baseline["latency_ms"] / cost["latency_ms"]
            self._cost = cost
        name = "baseline" if stage == "baseline" else f"{stage}, cycle {self.at.cycle}"
        RunLog.event(trainer, events.Cost(cycle=self.at.cycle, stage=name, **cost))
        log_numbers(trainer, {f"plasticity/{key}": x for key, x in cost.items() if isinstance(x, int | float)})

    def _log_text(self, trainer: L.Trainer, module: LanguageModule, stage: str) -> None:
        prompts = self.run.prompts
        if prompts is None or not trainer.is_global_zero:
            return
        options = GenerationOptions(40, prompts.options.temperature, prompts.options.top_k, seed=0)
        texts = [{"prompt": prompt, "text": continued(prompt, module, self.data, options)} for prompt in prompts.texts]
        RunLog.event(trainer, events.TextSamples(stage=stage, texts=texts))

    # Others that watch the validation loss

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No early stop before the cycles are done: until then every loss is the best so far."""
        if trainer.state.fn == "fit" and self.at.phase != "done":
            reset_early_stopping(trainer)

    # The end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._rates is not None:
            self._rates.detach()
        if self.at.phase != "done":
            rank_zero_warn(
                f"the run ended in the {self.at.phase} phase of cycle {self.at.cycle} of {self.plan.cycles}: give it "
                "more steps or time (trainer.max_steps, trainer.max_time)"
            )
        if self.targets and trainer.is_global_zero:
            print("\n".join(self.summary(self.module)))

    def summary(self, module: LanguageModule) -> list[str]:
        """What was reached, and what was proved, in lines."""
        lines = []
        for kind in self.targets:
            units = units_in(module, kind)[0]
            total, dead = math.prod(units.shape), int((~units.mask).sum())
            lines.append(f"{kind}: {total:,} -> {total - dead:,} ({dead / total:.1%} dead, surgery: {self.surgery})")
        parameters = sum(p.numel() for p in module.backbone.parameters())
        lines.append(f"parameters: {self._baseline.get('parameters', 0):,} -> {parameters:,}")
        if self._cost:
            lines.append(
                f"a forward: {self._baseline['latency_ms']:.1f} -> {self._cost['latency_ms']:.1f} ms, "
                f"{self._cost['measured']:.2f} x faster; FLOPs allow {self._cost['ceiling']:.2f} x"
            )
        lines += [f"proved: {name}: {value:g}" for name, value in self._proved.items()]
        return lines

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        at = self.at if self.at.phase in (*LASTING, "done") else self._left  # what failed half-way is done again
        return {
            "at": [at.phase, at.cycle, at.steps],
            "started": self._started,
            "losses": list(self._losses),
            "ce_at_start": self._ce_at_start,
            "baseline": dict(self._baseline),
            "cost": dict(self._cost),
            "proved": dict(self._proved),
            "factors": self._factors,
            "snapshot": self._snapshot,
            "kept": {kind: units.kept_state() for kind, units in self._units.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        phase, cycle, steps = state_dict["at"]
        self.at = Position(phase, cycle, steps)
        self._started, self._losses = state_dict["started"], list(state_dict["losses"])
        self._ce_at_start, self._baseline = state_dict["ce_at_start"], dict(state_dict["baseline"])
        self._cost = dict(state_dict["cost"])
        self._proved, self._factors = dict(state_dict["proved"]), state_dict["factors"]
        self._snapshot, self._kept = state_dict["snapshot"], state_dict["kept"]


def _units_of(mask: Tensor) -> list[tuple[int, int]]:
    """Layer and number of each that is True."""
    return [(i, unit) for i, unit in mask.nonzero().tolist()]


def _check_level(kind: str, level: float | list[float], cycles: int) -> None:
    levels = level if isinstance(level, list) else [level]
    if not all(0 <= share < 1 for share in levels):
        raise InputError(f"the level of {kind} is {level}; it must lie in [0, 1)")
    dead_after(level, 1, 0, cycles)  # refuses a list of another length, or one that falls
