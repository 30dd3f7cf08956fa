"""PlasticitySchedule: cycles of warmup, analysis, pruning, regrowth, fine-tuning and evaluation within a fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_app.errors import InputError
from lightning_app.plasticity.cycle import Cycle
from lightning_app.plasticity.foretold import entered
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.learning_rates import FinetuningRates
from lightning_app.plasticity.options import ScheduleOptions, check_run, check_units
from lightning_app.plasticity.phases import Move, Phase, Position, next_move
from lightning_app.plasticity.progress import Progress
from lightning_app.plasticity.pruner import check_strategy
from lightning_app.plasticity.report import events
from lightning_app.plasticity.stabilization import Verdict, judged
from lightning_app.plasticity.stages import Stages, summary
from lightning_app.plasticity.units import Units
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.callbacks.run_log import RunLog
from lightning_app.training.distributed import gathered
from lightning_app.training.lightning_internals.callbacks import reset_early_stopping
from lightning_app.training.module import LanguageModule

MOST_LOSSES = 1_000  # that stabilisation looks back on


class PlasticitySchedule(RunCallback):
    """Prunes heads (and neurons) of the model in cycles, by evidence, and proves after each event that it is so.

    Args:
        options: see `ScheduleOptions`.

    Raises:
        InputError: an option out of range; in `setup` a plan that the run or the model cannot carry out.
    """

    def __init__(self, **options: Any):
        self.options = ScheduleOptions(**options)
        self.plan = self.options.plan
        self._reset()

    def _reset(self) -> None:
        self.progress = Progress(Position() if self.options.kinds else Position("done"))
        self._rates = FinetuningRates(self.options.advanced.layer_lr_factor, self.options.advanced.head_lr_factor)
        self._kept: dict[Kind, Any] = {}  # by kind, what a checkpoint has of removed units
        self._units: dict[Kind, Units] = {}

    # Before training: what cannot work is refused

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.run.decide_heads(self)
        if not self.options.kinds:
            return
        self._reset()  # an earlier fit's; Lightning loads a checkpoint's state after this hook
        module, data = self.module, self.data
        check_strategy(trainer.strategy)
        if not data.splits.origin("val"):
            raise InputError("plasticity decides by a validation text: give data.val or data.split")
        for kind in self.options.kinds:
            self._units[kind] = units_in(module, kind)[0]
            check_units(self.options, self._units[kind])
        check_run(self.options, steps=module.optimizer_steps())
        if self.options.advanced.layer_lr_factor != 1:
            module.group_by_layer = True

    # The run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.options.kinds:
            return
        self._step, module = trainer.global_step, self.module
        stages = Stages(trainer, module, self.data, self.options, self.progress, self.run.prompts)
        self._cycle = Cycle(self.options, self.progress, stages, self._rates)
        for kind, state in self._kept.items():
            units_in(module, kind)[0].load_kept_state(state)
        self._kept = {}
        if self.progress.factors is not None:
            self._rates.attach(trainer, units_in(module, "heads")[0], self.progress.factors)
        if not self.progress.started:
            self.progress.started = True
            RunLog.event(trainer, self._started(module))
            self._transition(trainer, Move(Position("training", 0), "the run begins"))
            stages.look("baseline", with_text=True)
        self._advance(trainer)  # of a resumed run too, if it failed in a phase that does not last

    def _started(self, module: LanguageModule) -> events.PlasticityStarted:
        options, heads = self.options, units_in(module, "heads")[0]
        of_heads = sum(part.parameter.numel() for layer in heads.layers for part in layer.parts)
        return events.PlasticityStarted(
            shape=list(heads.shape),
            units={kind: list(units_in(module, kind)[0].shape) for kind in options.kinds},
            query_heads=heads.layers[0].query_heads,
            targets=[*options.kinds],
            strategy=", ".join(f"{kind}: {options.strategies[kind].name}" for kind in options.kinds),
            surgery=options.surgery,
            pruning_level=options.pruning_level,
            head_parameters_share=of_heads / sum(p.numel() for p in module.backbone.parameters()),
            **asdict(self.plan),
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.options.kinds or trainer.global_step == self._step:
            return  # within an accumulation
        self._step, progress = trainer.global_step, self.progress
        if progress.at.phase != "done":
            progress.at = replace(progress.at, steps=progress.at.steps + 1)
            self._note_loss()
            if progress.at.phase in ("warmup", "finetuning") and progress.at.steps % self.options.eval_freq == 0:
                self._cycle.stages.evaluate(progress.at.phase)
            self._advance(trainer)
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            self._log(self.module)

    def _note_loss(self) -> None:
        """For the rule of stability: of all batches of the step."""
        if self.progress.at.phase == "warmup" and self.plan.until_stable and not self.module.skipped_step:
            self.progress.losses.append(float(gathered(self.module.train_loss.reshape(1)).mean()))
            del self.progress.losses[:-MOST_LOSSES]

    def _log(self, module: LanguageModule) -> None:
        heads = units_in(module, "heads")[0]
        total, alive = math.prod(heads.shape), int(heads.mask.sum())
        numbers = {"sparsity": 1 - alive / total, "active_heads": alive, "total_heads": total}
        module.log_dict({f"plasticity/{name}": float(x) for name, x in numbers.items()})
        module.log("plasticity/cycle", float(self.progress.at.cycle))

    def _advance(self, trainer: L.Trainer) -> None:
        """As many phases on as are due."""
        recovered = True
        while True:
            verdict = self._verdict()
            stable = bool(verdict and verdict.stable)
            move = next_move(self.plan, self.progress.at, stable=stable, recovered=recovered)
            if move is None:
                return
            if verdict is not None:
                self._log_verdict(trainer, verdict)
            self._transition(trainer, move)
            recovered = self._cycle.enter()

    def _transition(self, trainer: L.Trainer, move: Move) -> None:
        self.progress.move(move.to)
        transition = events.PhaseTransition(phase=move.to.phase, cycle=move.to.cycle, reason=move.reason)
        RunLog.event(trainer, transition)
        if move.to.phase not in ("training", "evaluation"):
            rank_zero_info(f"plasticity, cycle {move.to.cycle}: {move.to.phase} ({move.reason})")

    def _verdict(self) -> Verdict | None:
        """On this warmup's losses; None: nobody asks."""
        if self.progress.at.phase != "warmup" or not self.plan.until_stable:
            return None
        rule, window = self.options.advanced.stability_rule, self.options.advanced.stability_window
        return judged(self.progress.losses, rule=rule, window=window)

    def _log_verdict(self, trainer: L.Trainer, verdict: Verdict) -> None:
        stabilised = events.Stabilised(
            cycle=self.progress.at.cycle,
            rule=self.options.advanced.stability_rule,
            window=verdict.window,
            statistic=verdict.statistic if math.isfinite(verdict.statistic) else None,
            losses=[*self.progress.losses[-max(verdict.window, 1) :]],
            after=self.progress.at.steps,
            stable=verdict.stable,
            reason=verdict.reason,
        )
        RunLog.event(trainer, stabilised)

    # A dry run

    def rehearse(self) -> Callable[[int], float] | None:
        """See `RunCallback`: each part of a cycle that is to come is carried out once."""
        trainer, at = self._in_run[0], self.progress.at
        steps, unseen = self.module.optimizer_steps(), trainer.global_step - self._step
        if not self.options.kinds:
            return None
        costs = {phase: self._seconds_of(phase) for phase in entered(self.plan, at, steps=steps, eval_freq=1)[0]}
        start = time.monotonic()
        self._cycle.stages.evaluate("rehearsal")
        evaluation = time.monotonic() - start

        def seconds(further: int) -> float:
            phases, evaluations = entered(self.plan, at, steps=further + unseen, eval_freq=self.options.eval_freq)
            return sum(n * costs[phase] for phase, n in phases.items()) + evaluations * evaluation

        return seconds

    def _seconds_of(self, phase: Phase) -> float:
        start = time.monotonic()
        self.progress.move(Position(phase, self.progress.at.cycle + (phase == "warmup")))
        self._cycle.enter()
        return time.monotonic() - start

    # Others that watch the validation loss

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No early stop before the cycles are done: until then every loss is the best so far."""
        if trainer.state.fn == "fit" and self.progress.at.phase != "done":
            reset_early_stopping(trainer)

    # The end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rates.detach()
        at = self.progress.at
        if at.phase != "done":
            rank_zero_warn(
                f"the run ended in the {at.phase} phase of cycle {at.cycle} of {self.plan.cycles}: give it "
                "more steps or time (trainer.max_steps, trainer.max_time)"
            )
        if self.options.kinds and trainer.is_global_zero:
            print("\n".join(summary(self.module, self.options, self.progress)))

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.progress.state_dict(),
            "kept": {kind: units.kept_state() for kind, units in self._units.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress.load_state_dict(state_dict)
        self._kept = state_dict["kept"]
