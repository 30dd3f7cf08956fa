"""Surgery within a running fit: model, copies, optimizer and the strategy's wrapper go together, with proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lightning_app.data.strategies import shards_parameters
from lightning_app.errors import InputError
from lightning_app.models.modes import evaluated, full_precision, uncompiled
from lightning_app.plasticity import checks as proof
from lightning_app.plasticity.importance import Sample, gate_gradients
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.pruning import as_mask, most_missed
from lightning_app.plasticity.surgery import state_like
from lightning_app.training.distributed import gathered, several_ranks, world_size
from lightning_app.training.lightning_internals.strategies import wrap_again
from lightning_app.training.module import LanguageModule

Surgery = Literal["remove", "mask"]
Checks = dict[str, float | int]


def check_strategy(strategy: Strategy) -> None:
    """Refuses one that shards parameters."""
    if shards_parameters(strategy):
        raise InputError(
            f"under {type(strategy).__name__} no rank has whole matrices: heads can neither be cut out of them nor be "
            "proved dead; use the strategy ddp"
        )


class Pruner:
    """Prunes and regrows units of a module that is being trained, and proves each time that it did.

    Args:
        surgery: `remove` cuts units out, `mask` multiplies them by 0.
        keep: remember what is pruned, so that it can be regrown as it was.
        compute: logits of a few texts, by which proofs compare.

    Raises:
        InputError: a strategy that shards parameters.
    """

    def __init__(
        self, trainer: L.Trainer, module: LanguageModule, *, surgery: Surgery, keep: bool, compute: Callable[[], Tensor]
    ):
        check_strategy(trainer.strategy)
        self.trainer, self.module, self.surgery, self.keep = trainer, module, surgery, keep
        self._compute = compute

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    def compute(self) -> Tensor:
        """Logits in eval mode and in the weights' own precision: with TF32 a cut may show in the third digit.

        What is compiled has the masks of before until `_settle`, so it runs as if it were not.
        """
        with uncompiled(), torch.no_grad(), evaluated(self.module), full_precision(self.module.device):
            return self._compute()

    def prune(self, kind: Kind, dead: Tensor) -> Checks:
        """(L, N) bool, all of them alive -> what was proved."""
        main, *copies = units_in(self.module, kind)
        expected, before = main.mask & ~dead, self._parameters()
        removes, keep = self.surgery == "remove", self.keep and kind == "heads"  # neurons do not regrow
        if keep:
            main.keep(dead, self._optimizer)
        sizes = [sum(part.parameter.numel() for part in layer.parts) // len(layer.present) for layer in main.layers]
        with proof.removal_checked(main, self._optimizer) if removes else nullcontext():
            main.set_mask(expected)
            checks: Checks = {"dead units whose weights change nothing": proof.check_dead_units(main, self.compute)}
            masked = self.compute()
            if removes:
                main.remove(dead, self._optimizer, keep=keep)
        if removes:
            checks["logits, masked against removed"] = proof.logits_agree(masked, self.compute(), what="removal")
        for copy in copies:
            copy.set_mask(expected)
            if removes:
                copy.remove(dead, keep=False)
        checks[f"dead {kind}"] = proof.counts_agree(main, expected)
        cut = (dead & ~main.present).sum(1).tolist()
        gone, lost = before - self._parameters(), sum(n * size for n, size in zip(cut, sizes, strict=True))
        if removes and gone != lost:
            raise proof.SurgeryError(f"{gone:,} parameters went, {lost:,} belong to the units that were removed")
        checks["parameters removed"] = gone
        return checks | self._settle()

    def regrow(
        self, kind: Kind, n: int, how: Literal["undo", "new"], sample: Sample
    ) -> tuple[list[tuple[int, int]], list[float], Checks]:
        """The n dead units that are missed most, by |dL/dgate| at a gate of 0 -> which, how much, what was proved.

        Of those that were kept: what an earlier run has removed cannot be measured.
        """
        main, *copies = units_in(self.module, kind)
        optimizer, alive = self._optimizer, main.mask
        kept = as_mask(main.kept, alive.shape)
        absent = kept & ~main.present
        before = self.compute()
        for i, unit in absent.nonzero().tolist():
            main.regrow(i, unit, "undo", optimizer)
        main.keep(absent, optimizer)
        main.set_mask(alive)
        with torch.enable_grad(), evaluated(self.module):
            missed = gate_gradients(main, sample, open_masks=True).abs().mean(0)
        missed = self.trainer.strategy.broadcast(missed)  # one decision for all ranks
        chosen = most_missed(missed, alive | ~kept, min(n, int((kept & ~alive).sum())))
        slices = {unit: main.kept[unit] for unit in chosen}
        for i, unit in chosen:
            main.regrow(i, unit, how, optimizer)
            alive[i, unit] = True
            if how == "undo":
                proof.as_kept(main, i, unit, slices[i, unit], optimizer)
        if self.surgery == "remove":
            main.remove(~alive, optimizer)
        for copy in copies:
            for i, unit in chosen:
                copy.regrow(i, unit, main.slice_of(i, unit))
        checks: Checks = {f"dead {kind}": proof.counts_agree(main, alive)}
        if how == "new":
            checks["logits, before against after"] = proof.logits_agree(before, self.compute(), what="regrowth")
        return chosen, [float(missed[i, unit]) for i, unit in chosen], checks | self._settle()

    def snapshot(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """All that `go_back` needs, on the CPU, in plain types."""
        main = {kind: units_in(self.module, kind)[0] for kind in kinds}
        return {
            "layouts": {kind: units.layout() for kind, units in main.items()},
            "kept": {kind: units.kept_state() for kind, units in main.items()},
            "module": _on_cpu(self.module.state_dict()),
            "optimizer": _on_cpu(self._optimizer.state_dict()),
        }

    def go_back(self, snapshot: dict[str, Any]) -> Checks:
        """Weights, heads and optimizer state of then; learning rates and the step count go on."""
        optimizer = self._optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        for kind, layout in snapshot["layouts"].items():
            main, *copies = units_in(self.module, kind)
            main.set_layout(layout, optimizer)
            for copy in copies:
                copy.set_layout(layout)
            main.load_kept_state(snapshot["kept"][kind])
        self.module.load_state_dict(snapshot["module"])
        optimizer.load_state_dict(snapshot["optimizer"])
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        return self._settle()

    def _parameters(self) -> int:
        return sum(p.numel() for p in self.module.backbone.parameters())

    def _settle(self) -> Checks:
        """After surgery: the wrapper, what was compiled, the optimizer and the ranks."""
        checks: Checks = {"parameters that the optimizer has": proof.optimizer_knows(self.module, self._optimizer)}
        if several_ranks():  # before DDP is made anew, which gives all ranks the weights of the first
            checks["ranks with the same weights"] = self._ranks_agree()
        wrap_again(self.trainer, self.module)  # for masks too: what is regrown is a new parameter
        self.module.compile_again()
        return checks

    def _ranks_agree(self) -> int:
        """Sizes and sums of all weights, and of what the optimizer knows of them."""
        numbers = []
        for p in self.module.parameters():
            numbers += [x.detach().double().sum() for x in (p, *state_like(self._optimizer, p).values())]
            numbers.append(torch.full_like(numbers[-1], p.numel()))
        all_ranks = gathered(torch.stack(numbers)[None])
        if not torch.equal(all_ranks, all_ranks[:1].expand_as(all_ranks)):
            raise proof.SurgeryError("the ranks have different weights or optimizer states after surgery")
        return world_size()


def _on_cpu(state: Any) -> Any:
    """A copy."""
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return type(state)(_on_cpu(value) for value in state) if isinstance(state, list | tuple) else state
