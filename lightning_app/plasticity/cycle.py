"""What happens in each phase of a cycle: analysis, pruning, regrowth, the rates of fine-tuning, and going back.

Shapes: L layers, H heads, N units of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_app.models.modes import evaluated
from lightning_app.plasticity.importance import GateImportance, gate_gradients, mean_entropy, save_importance
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.learning_rates import FinetuningRates, described
from lightning_app.plasticity.measurements import importance_of, plain
from lightning_app.plasticity.options import MULTIPLE, ScheduleOptions
from lightning_app.plasticity.progress import Progress
from lightning_app.plasticity.pruner import Checks, Pruner
from lightning_app.plasticity.pruning import Unit, as_mask, choose, choose_widths
from lightning_app.plasticity.report import events
from lightning_app.plasticity.scores import min_max
from lightning_app.plasticity.stages import Stages
from lightning_app.plasticity.units import Units
from lightning_app.training.callbacks.logger_output import other_loggers
from lightning_app.training.callbacks.run_log import RunLog, run_folder
from lightning_app.training.lightning_internals.callbacks import reset_best_checkpoint

PIXELS = 16  # of a head's square


class Cycle:
    """Carries out the phases of a cycle on the module of a running fit, and logs an event for each.

    Args:
        stages: evaluates the module, and draws the sample that decisions rest on.
        rates: of the fine-tuning.
    """

    def __init__(self, options: ScheduleOptions, progress: Progress, stages: Stages, rates: FinetuningRates):
        self.options, self.progress, self.stages, self.rates = options, progress, stages, rates
        self.trainer, self.module = stages.trainer, stages.module

    def enter(self) -> bool:
        """Do what the phase begins with. Returns: whether the loss has recovered (asked of an evaluation)."""
        phase = self.progress.at.phase
        if phase == "evaluation":
            return self.end()
        if phase == "warmup":
            self.progress.losses = []
        elif phase == "analysis":
            self.analyse()
        elif phase == "pruning":
            self.prune()
            self.stages.look("pruned", with_text=True)
        elif phase == "regrowth":
            self.regrow()
        elif phase == "finetuning":
            self.begin_finetuning()
        elif phase == "done":
            self.progress.snapshot = None
        return True

    def _units(self, kind: Kind) -> Units:
        return units_in(self.module, kind)[0]

    @property
    def _cycle(self) -> int:
        return self.progress.at.cycle

    def _pruner(self) -> Pruner:
        ids, module = self.stages.sample.batches[0].input_ids[:2], self.module
        return Pruner(
            self.trainer,
            module,
            surgery=self.options.surgery,
            keep=self.options.advanced.keep_removed,
            compute=lambda: module.backbone.text_logits(ids),
        )

    def _prove(self, checks: Checks, *, of: str = "heads") -> None:
        RunLog.event(self.trainer, events.Proof(cycle=self._cycle, checks=checks))
        self.progress.proved |= {f"of {of}: {name}": value for name, value in checks.items()}

    def analyse(self) -> None:
        """Measure the importance of all units on the sample."""
        self.progress.ce_at_start = self.stages.look("before")
        if self.options.advanced.automatic:
            self.progress.snapshot = self._pruner().snapshot(self.options.kinds)
        for kind in self.options.kinds:
            scores, maps = self._measured(kind)
            self.progress.scores[kind] = scores = self.trainer.strategy.broadcast(scores)
            if kind == "heads":
                self._log_analysis(scores, maps)
            self._save(scores, kind)

    def _measured(self, kind: Kind) -> tuple[Tensor, dict[str, Tensor]]:
        """(L, N) importance, and of heads the other maps (L, H) that are shown beside it."""
        units, options = self._units(kind), self.options
        total = math.prod(units.shape)
        keep = total - options.dead_after_pruning(kind, total, self._cycle)
        strategy, datasets, sample = options.strategies[kind], options.advanced.datasets, self.stages.sample
        with torch.enable_grad(), evaluated(self.module):  # all of it: token noise and readers are the module's
            gradients = gate_gradients(units, sample) if kind == "heads" else None
            if gradients is not None and isinstance(strategy, GateImportance) and not datasets:
                scores = strategy.by_gradients(gradients, units, sample)
            else:
                samples = self.stages.samples(datasets)
                scores = importance_of(strategy, units, samples, keep=keep, how=options.advanced.combine)
            if gradients is None:
                return scores, {}
            return scores, {"gradient": gradients.abs().mean(0), "entropy": mean_entropy(units, sample)}

    def _log_analysis(self, scores: Tensor, maps: dict[str, Tensor]) -> None:
        alive = self._units("heads").mask
        shown = {name: x.where(alive, math.nan) for name, x in {"importance": scores, **maps}.items()}
        analysis = events.Analysis(
            cycle=self._cycle,
            strategy=self.options.strategies["heads"].name,
            alive=alive.int().tolist(),
            importance=plain(shown["importance"]),
            gradient=plain(shown["gradient"]),
            entropy=plain(shown["entropy"]),
        )
        RunLog.event(self.trainer, analysis)
        log_maps(self.trainer, {f"plasticity/{name}": x for name, x in shown.items()})

    def _save(self, scores: Tensor, kind: Kind) -> None:
        folder = run_folder(self.trainer)
        if folder and self.options.advanced.save_importance and self.trainer.is_global_zero:
            path = folder.importance(kind, self._cycle)
            save_importance(path, scores, kind=kind, strategy=self.options.strategies[kind].name)

    def prune(self) -> None:
        """Prune as many units of each kind as the level of this cycle asks for, the least important ones."""
        pruner = self._pruner()
        for kind in self.options.kinds:
            units, scores = self._units(kind), self.progress.scores.pop(kind)
            alive = units.mask
            wanted = self.options.dead_after_pruning(kind, math.prod(units.shape), self._cycle)
            n = max(0, wanted - int((~alive).sum()))
            if kind == "neurons":
                dead = choose_widths(scores, alive, n, multiple=MULTIPLE)
                checks = pruner.prune(kind, dead)
                event: dict[str, Any] = {"removed": dead.sum(1).tolist(), "widths": units.mask.sum(1).tolist()}
            else:
                chosen = choose(scores, alive, n, keep_per_layer=self.options.advanced.keep_per_layer)
                dead = as_mask(chosen, alive.shape)
                checks = pruner.prune(kind, dead)
                event = {**ranked(chosen, scores, alive), "alive": units.mask.int().tolist()}
            name, level = self.options.strategies[kind].name, self.options.levels[kind]
            reason = f"the least important by {name}; {int(dead.sum())} {kind} to reach level {level}"
            RunLog.event(self.trainer, events.Pruning(cycle=self._cycle, target=kind, reason=reason, **event))
            self._prove(checks, of=kind)
        reset_best_checkpoint(self.trainer)

    def regrow(self) -> None:
        """The dead heads that are missed most."""
        how = self.options.advanced.regrow_how
        chosen, missed, checks = self._pruner().regrow("heads", self.options.advanced.regrow, how, self.stages.sample)
        regrowth = events.Regrowth(
            cycle=self._cycle,
            heads=[list(unit) for unit in chosen],
            scores=missed,
            how=how,
            reason="missed most: the largest |dL/dgate| at a gate of 0",
            alive=self._units("heads").mask.int().tolist(),
        )
        RunLog.event(self.trainer, regrowth)
        self._prove(checks)
        self.stages.look("regrown")

    def begin_finetuning(self) -> None:
        """Learning rates for what has lost units."""
        masks = [self._units(kind).mask for kind in self.options.kinds]
        self.progress.factors = self.rates.begin(self.trainer, self._units("heads"), masks)
        self._log_rates()

    def _log_rates(self) -> None:
        RunLog.event(self.trainer, events.LearningRates(groups=described(self.trainer)))

    def end(self) -> bool:
        """Learning rates as before, and the last evaluation. Returns: whether the loss has recovered."""
        self.rates.end(self.trainer)
        self._log_rates()
        self.progress.factors = None
        ce = self.stages.look("recovered", with_text=True)
        limit = self.progress.ce_at_start * (1 + self.options.advanced.tolerance)
        if not self.options.advanced.automatic or ce <= limit:
            return True
        self.go_back(ce, limit)
        return False

    def go_back(self, ce: float, limit: float) -> None:
        """To the state before this cycle, as its loss `ce` stayed above `limit` (nats per token)."""
        assert self.progress.snapshot is not None
        checks = self._pruner().go_back(self.progress.snapshot)
        rollback = events.Rollback(
            cycle=self._cycle,
            ce=ce,
            limit=limit,
            reason=f"{ce:.4f} nats per token after fine-tuning, more than {limit:.4f}: back to before this cycle",
            alive=self._units("heads").mask.int().tolist(),
        )
        RunLog.event(self.trainer, rollback)
        self._prove(checks, of="going back")
        reset_best_checkpoint(self.trainer)
        self.stages.look("before")
        self.stages.log_cost("gone back")


def ranked(chosen: list[Unit], scores_LH: Tensor, alive_LH: Tensor) -> dict[str, Any]:
    """Heads, scores and reasons of those that were chosen: the rank of each among the living, from below."""
    living: list[Unit] = [(layer, unit) for layer, unit in alive_LH.nonzero().tolist()]
    rank = {unit: i + 1 for i, unit in enumerate(sorted(living, key=lambda unit: float(scores_LH[unit])))}
    return {
        "heads": [list(unit) for unit in chosen],
        "scores": [float(scores_LH[unit]) for unit in chosen],
        "reasons": [f"number {rank[unit]} of {len(rank)} from below" for unit in chosen],
    }


def log_maps(trainer: L.Trainer, maps: Mapping[str, Tensor | None]) -> None:
    """(L, H) maps by tag as pictures, from the least (black) to the most; rank 0 alone."""
    for tag, matrix in maps.items():
        for logger in other_loggers(trainer) if matrix is not None else []:
            assert matrix is not None
            grey = min_max(matrix).nan_to_num(0.0).float()
            picture = grey.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)[None]
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, picture, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [picture], step=trainer.global_step)
