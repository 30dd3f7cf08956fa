"""HeadController: heads are switched off and on while a model trains, and the inactive ones cut out at the end.

Shapes: L layers, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.models.modes import evaluated
from lightning_app.plasticity.controller.networks import (
    ANNController,
    Controller,
    GateLogits,
    HeadMetrics,
    damage_of,
    expected_damage,
)
from lightning_app.plasticity.importance import Sample
from lightning_app.plasticity.kinds import AttentionHeads, units_in
from lightning_app.plasticity.measurements import plain, sample_of
from lightning_app.plasticity.pruner import Pruner, check_strategy
from lightning_app.plasticity.report import events
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.callbacks.run_log import RunLog
from lightning_app.training.distributed import gathered
from lightning_app.training.lightning_internals.callbacks import reset_best_checkpoint, timers
from lightning_app.training.module import LanguageModule

AtEnd = Literal["remove", "mask", "keep"]


LEAST = {"controller_reg_weight": 0, "measured_heads": 0} | dict.fromkeys(
    ("controller_update_freq", "sample_rows", "entropy_rows", "log_every"), 1
)


@dataclass(frozen=True)
class AdvancedController:
    """What few runs change of a `HeadController`.

    Args:
        controller_reg_weight: of the L1 norm of the gates: nats per token that a head must be worth.
        controller_update_freq: optimizer steps between updates.
        controller_lr: None: that of the mode, see its class.
        measured_heads: whose damage is measured at each update, in turns; 0: none, the controller follows dL/dgate
            alone and predicts nothing. Of `network` alone.
        update_scale: of `logits` alone.
        learn_from_loss: of `logits` alone.
        sample_rows: sequences of the validation text on which entropy and damage are measured.
        entropy_rows: of them, for entropy.
        log_every: updates between two `controller_update` events.

    Raises:
        InputError: an option out of range.
    """

    controller_reg_weight: float = 1e-4
    controller_update_freq: int = 10
    controller_lr: float | None = None
    measured_heads: int = 2
    update_scale: float = 100.0
    learn_from_loss: bool = False
    sample_rows: int = 8
    entropy_rows: int = 2
    log_every: int = 5

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("controller_lr", "update_scale"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise InputError(f"{name} is {rate}; it must be above 0")


class HeadController(RunCallback):
    """Gates the attention heads of a model while it trains, by `ANNController` or `GateLogits`.

    A head is active where its gate is above 0.5. Training computes with the active heads alone: gates of the forward
    are 1 and 0, and dL/dgate goes straight through that step, so that what is counted as inactive contributes exactly
    nothing, and the model that is validated, sampled, saved and at last cut is the one that was trained. Outside of a
    training batch it is a model with masked heads like any other: nothing else needs to know of the controller.

    Args:
        mode: `network` (`ANNController`) or `logits` (`GateLogits`).
        warmup_steps: before the first update: at first no head is worth anything yet.
        steps: optimizer steps after which the active heads stay as they are; None: all of the run.
        at_end: what becomes of inactive heads then: `remove` cuts them out, `mask` multiplies them by 0 for good;
            `keep` leaves them masked for now: a run that goes on with more steps goes on with the controller, too.
        advanced: see `AdvancedController`.

    Raises:
        InputError: an option out of range; in `setup` what the run or the model does not allow.
    """

    def __init__(
        self,
        mode: Literal["network", "logits"] = "network",
        warmup_steps: int = 200,
        steps: int | None = None,
        at_end: AtEnd = "remove",
        advanced: AdvancedController = AdvancedController(),
    ):
        if mode not in ("network", "logits"):
            raise InputError(f"mode is {mode!r}; it must be network or logits")
        if at_end not in ("remove", "mask", "keep"):
            raise InputError(f"at_end is {at_end!r}; it must be remove, mask or keep")
        if mode == "network" and advanced.learn_from_loss:
            raise InputError("learn_from_loss is an option of mode: logits; the network always does")
        if warmup_steps < 0:
            raise InputError(f"warmup_steps is {warmup_steps}; it must be at least 0")
        if steps is not None and steps <= warmup_steps:
            raise InputError(f"steps is {steps}, and warmup_steps {warmup_steps}: the controller would never decide")
        self.mode, self.warmup_steps, self.steps, self.at_end = mode, warmup_steps, steps, at_end
        self.advanced = advanced
        self._reset()

    def _reset(self) -> None:
        self.controller: Controller | None = None
        self.active = torch.ones(0, 0, dtype=torch.bool)
        self._age = self._damage = torch.zeros(0, 0)
        self._updates, self._turns, self._done, self._started = 0, 0, False, False
        self._leaves: list[Tensor] = []
        self._tokens = 0  # of a batch
        self._sums: list[
            Tensor
        ] = []  # (3, P) of each layer: of dL/dgate, its size and its square, since the last update
        self._backwards = 0
        self._kept: tuple[list[Tensor], int] = ([], 0)  # both, before the step in work

    # Before training: what cannot work is refused

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._reset()
        module, data = self.module, self.data
        self.run.decide_heads(self)
        check_strategy(trainer.strategy)
        if module.compiles:
            raise InputError("HeadController changes gates within each step: switch off the module's compile")
        if not data.splits.origin("val"):
            raise InputError("the controller decides by a validation text, too: give data.val or data.split")
        self._make(units_in(module, "heads")[0].shape)
        end, first = self._last_step(), self.warmup_steps + self.advanced.controller_update_freq
        if end <= first:
            rank_zero_warn(
                f"the controller decides from step {first} on, and it ends at step {end}: it will switch nothing; "
                "lower warmup_steps, or raise trainer.max_steps"
            )

    def _make(self, shape: tuple[int, int]) -> None:
        given = self.advanced
        options: dict[str, Any] = {"controller_reg_weight": given.controller_reg_weight}
        if given.controller_lr is not None:
            options["controller_lr"] = given.controller_lr
        if self.mode == "network":
            self.controller = ANNController(shape, **options)
        else:
            own: dict[str, Any] = {"update_scale": given.update_scale, "learn_from_loss": given.learn_from_loss}
            self.controller = GateLogits(shape, **options, **own)
        self.active = torch.ones(shape, dtype=torch.bool)
        self._age, self._damage = torch.zeros(shape), torch.full(shape, torch.nan, dtype=torch.float64)

    def _last_step(self) -> int:
        run = self.module.optimizer_steps()
        return run if self.steps is None else min(self.steps, run)

    # A step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.controller is not None
        self._step, self._end = trainer.global_step, self._last_step()
        self._sample = self._make_sample(self.advanced.sample_rows)
        self._timers = timers(trainer)
        heads = units_in(self.module, "heads")[0]
        if not self._started:  # heads of the start that are masked begin switched off, those that are gone stay so
            self.active = heads.mask
            self.controller.close(heads.present & ~heads.mask)
            self._started = True
        for units in units_in(self.module, "heads"):
            units.set_mask(self.active)

    def _make_sample(self, rows: int) -> Sample:
        dataset = self.data.dataset("val")
        if not len(dataset):
            raise InputError(f"data.val has no sequence of {self.data.block_size} tokens to measure heads on")
        return sample_of(self.module, dataset, batches=1, batch_size=rows, seed=0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._done:
            return
        for units in units_in(self.module, "heads"):  # an averaged copy takes the buffers of the model
            units.open_gates()
            units.set_mask(units.present)
            leaves = units.set_gates(self.active.float(), gradient=not self._leaves)  # of the model, which is the first
            self._leaves = self._leaves or leaves
        self._tokens = batch.input_ids.numel()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._done or any(leaf.grad is None for leaf in self._leaves):
            return
        window = self.module.window
        scale = 1.0 if window is None else 1.0 * window.batches  # which each have their share of the step's loss
        plugin = trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            scale /= plugin.scaler.get_scale()
        gradients = [(leaf.grad * scale).nan_to_num(0, 0, 0) for leaf in self._leaves if leaf.grad is not None]
        found = [torch.stack([gradient, gradient.abs(), gradient.square()]) for gradient in gradients]
        self._sums = [a.to(b) + b for a, b in zip(self._sums, found, strict=True)] if self._sums else found
        self._backwards += 1
        for leaf in self._leaves:
            leaf.grad = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._done:
            self._mask()
        if trainer.global_step == self._step:
            return  # within an accumulation
        self._step = trainer.global_step
        if self.module.skipped_step:
            self._sums, self._backwards = self._kept
        if not self._done:
            self._age = (self._age + 1) * self.active
            if self._step >= self._end or self._stops(trainer):
                self._finish(trainer, self.module)
            elif self._step % self.advanced.controller_update_freq == 0:
                self._update(trainer, self.module)
        self._kept = (self._sums, self._backwards)
        pl_module.log_dict({f"controller/{name}": value for name, value in self._numbers().items()})

    def _mask(self) -> None:
        """Until the next batch this is a model with masked heads, for whatever looks at it."""
        for units in units_in(self.module, "heads"):
            units.set_mask(self.active)
            units.close_gates()
        self._leaves = []

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """For the checkpoint that may be saved now."""
        if self._leaves:
            self._mask()

    def _numbers(self) -> dict[str, float]:
        assert self.controller is not None
        return {
            "active_heads": float(self.active.sum()),
            "total_heads": float(self.active.numel()),
            "mean_gate": float(self.controller.gates.mean()),
        }

    # An update

    def _update(self, trainer: L.Trainer, module: LanguageModule) -> None:
        assert self.controller is not None
        metrics, before = self._metrics(module), self.active
        self._turns, self._sums, self._backwards = self._turns + 1, [], 0
        if self._step <= self.warmup_steps:
            return
        self.controller.update(metrics)
        self.active = self.controller.active(metrics.present)
        self._age = self._age * (before & self.active)
        self._updates += 1
        for units in units_in(module, "heads"):
            units.set_mask(self.active)
        if self._updates % self.advanced.log_every == 0 or bool((before != self.active).any()):
            update = events.ControllerUpdate(
                gates=plain(self.controller.gates),
                entropy=plain(metrics.entropy),
                gradient=plain(metrics.gradient),
                active=int(self.active.sum()),
                total=self.active.numel(),
                alive=self.active.int().tolist(),
            )
            RunLog.event(trainer, update)

    def _metrics(self, module: LanguageModule) -> HeadMetrics:
        """The same on every rank."""
        heads = units_in(module, "heads")[0]
        assert isinstance(heads, AttentionHeads)
        sums = self._sums or [torch.zeros(3, len(layer.present)) for layer in heads.layers]
        slope, size, square = heads.from_leaves(sums) / max(1, self._backwards)
        expected = expected_damage(slope, square, self.active, tokens=self._tokens)
        entropy = heads.entropy(self._sample.batches[0].input_ids[: self.advanced.entropy_rows], rows=8, seed=0)
        local = torch.stack([slope, size, expected, entropy, self._measured_now(module)]).float().to(module.device)
        slope, size, expected, entropy, damage = gathered(local[None]).double().cpu().mean(0)
        self._damage = damage.where(~damage.isnan(), self._damage)
        return HeadMetrics(entropy, size, self._age, slope, expected, self._damage)

    def _measured_now(self, module: LanguageModule) -> Tensor:
        """(L, H) damage of the heads whose turn it is, NaN of others."""
        heads = units_in(module, "heads")[0]
        with torch.no_grad(), evaluated(module):
            return damage_of(heads, self._sample, self._turn(heads.present))

    def _turn(self, present: Tensor) -> list[tuple[int, int]]:
        """The heads whose damage is measured now: each has its turn, in an order drawn for each round."""
        heads = [(i, head) for i, head in present.nonzero().tolist()]
        measured = self.advanced.measured_heads if self.mode == "network" else 0
        n, chosen = min(measured, len(heads)), []
        for k in range(self._turns * n, (self._turns + 1) * n):
            turn, place = divmod(k, len(heads))
            order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(turn))
            chosen.append(heads[int(order[place])])
        return sorted(set(chosen))

    # The end

    def _stops(self, trainer: L.Trainer) -> bool:
        """Whether the trainer ends after this step before its last: a time limit, which is looked at after this."""
        late = any(left is not None and left <= 0 for left in (timer.time_remaining() for timer in self._timers))
        return trainer.should_stop or (bool(trainer.strategy.broadcast(late)) if self._timers else False)

    def _finish(self, trainer: L.Trainer, module: LanguageModule) -> None:
        """Before the last checkpoint of the run is written, which is to hold what is left."""
        if self.at_end == "keep":
            return
        main = units_in(module, "heads")[0]
        dead = main.present & ~self.active
        ids = self._sample.batches[0].input_ids[:2]
        pruner = Pruner(
            trainer, module, surgery=self.at_end, keep=False, compute=lambda: module.backbone.text_logits(ids)
        )
        for units in units_in(module, "heads"):
            units.set_mask(units.present)
        before = sum(p.numel() for p in module.backbone.parameters())
        checks = pruner.prune("heads", dead)
        after = sum(p.numel() for p in module.backbone.parameters())
        self._done = True
        reset_best_checkpoint(trainer)
        heads = dead.nonzero().tolist()
        assert self.controller is not None
        pruning = events.Pruning(
            cycle=1,
            target="heads",
            heads=heads,
            scores=[float(self.controller.gates[i, head]) for i, head in heads],
            reason=f"gates of at most 0.5 when the controller ended; {self.at_end}",
            alive=main.mask.int().tolist(),
        )
        RunLog.event(trainer, pruning)
        RunLog.event(trainer, events.Proof(cycle=1, checks=checks))
        left = int(self.active.sum())
        rank_zero_info(
            f"controller: {left} of {self.active.numel()} heads are left ({self.at_end}); parameters: {before:,} -> "
            f"{after:,}; proved: " + ", ".join(f"{name}: {value:g}" for name, value in checks.items())
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An early stop: the checkpoint that is written after this validation is the run's last."""
        if trainer.state.fn == "fit" and trainer.should_stop and not self._done and not trainer.sanity_checking:
            self._finish(trainer, self.module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._done and self.at_end != "keep":
            rank_zero_warn(
                f"the run ended before step {self._end}, at which inactive heads were to be cut out: they are masked"
            )

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        return {
            "controller": None if self.controller is None else self.controller.state_dict(),
            "active": self.active,
            "age": self._age,
            "damage": self._damage,
            "sums": [x.cpu() for x in self._sums],
            "backwards": self._backwards,
            "updates": self._updates,
            "turns": self._turns,
            "done": self._done,
            "started": self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.controller is not None and state_dict["controller"] is not None:
            self.controller.load_state_dict(state_dict["controller"])
        self.active, self._age, self._damage = state_dict["active"], state_dict["age"], state_dict["damage"]
        self._sums, self._backwards = list(state_dict["sums"]), state_dict["backwards"]
        self._kept = (self._sums, self._backwards)
        self._updates, self._turns = state_dict["updates"], state_dict["turns"]
        self._done, self._started = state_dict["done"], state_dict["started"]
