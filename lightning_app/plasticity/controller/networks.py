"""Controllers: what decides, from what is measured of each head while a model trains, which heads are active.

A gate lies in (0, 1); a head is active where it is above 0.5. The model computes with active heads, whole, and not
with gates: weights would make up for a gate of 0.6, and be wrong once it is gone.

Shapes: L layers, H heads, F features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.plasticity.importance import Importance, Sample, gate_gradients, mean_entropy
from lightning_app.plasticity.scores import min_max
from lightning_app.plasticity.units import Units

ACTIVE = 0.5  # above this gate
LONG = 1000.0  # steps; ages are seen as a share of it, on a log scale
SMOOTHING = 0.9  # of the running mean square of what pushes a gate


@dataclass(frozen=True)
class HeadMetrics:
    """What is known of each head, (L, H) each.

    Attributes:
        entropy: of its attention, nats; NaN where a head was removed.
        gradient: mean |dL/dgate|, nats per token.
        age: optimizer steps since it was switched on; 0 of one that is off.
        slope: mean dL/dgate: below 0 where more of the head would lower the loss.
        expected: damage by the gradients alone: minus the slope, and of a head that is on half the curvature, see
            `TaylorImportance`; near 0 is the slope there alone, whatever the head is worth, as training has made it so.
        damage: what the loss becomes without the head less what it is with it, nats per token, when it was last
            measured; NaN: never.
    """

    entropy: Tensor
    gradient: Tensor
    age: Tensor
    slope: Tensor
    expected: Tensor
    damage: Tensor

    @property
    def present(self) -> Tensor:
        return ~self.entropy.isnan()


def features_of(metrics: HeadMetrics) -> Tensor:
    """(L, H, F) numbers from -1 to 1: entropy, gradient and expected damage by rank among the heads, age, and depth.

    Ranks, since gradients differ by orders of magnitude between heads and fall by as much during a training.
    """
    layers, heads = metrics.entropy.shape
    there = metrics.present
    age = (metrics.age.clamp_min(0) + 1).log() / math.log(LONG + 1)
    depth = torch.linspace(-1, 1, layers) if layers > 1 else torch.zeros(1)
    columns = [
        _ranked(metrics.entropy, there),
        _ranked(metrics.gradient, there),
        _ranked(metrics.expected, there),
        age.clamp(0, 1) * 2 - 1,
        depth[:, None].expand(layers, heads),
    ]
    return torch.stack([column.double().where(there, 0.0) for column in columns], dim=-1).float()


FEATURES = 5


def _ranked(values: Tensor, there: Tensor) -> Tensor:
    """From -1, the least of those that are there, to 1."""
    n = int(there.sum())
    order = values.where(there, math.inf).flatten().argsort(stable=True).argsort().view(values.shape)
    return order / max(1, n - 1) * 2 - 1


class Controller(nn.Module, ABC):
    """Gates for the heads of a model, changed by `update`. All that it knows is in its `state_dict`.

    Attributes:
        gates: (L, H) in (0, 1).
    """

    gates: Tensor

    def __init__(self, shape: tuple[int, int], start: float):
        super().__init__()
        self.shape = shape
        self.register_buffer("gates", torch.full(shape, start).sigmoid())

    @abstractmethod
    def update(self, metrics: HeadMetrics) -> None:
        """Move the gates once."""

    @abstractmethod
    def close(self, heads: Tensor) -> None:
        """Have these, (L, H) bool, begin as far below 0.5 as the others above it."""

    def active(self, there: Tensor) -> Tensor:
        """(L, H) bool: gates above 0.5, of the heads that are there, and in each layer that has one left the most open
        one: a layer without heads could not come back."""
        gates = self.gates.where(there, -1.0)
        on = gates > ACTIVE
        best = F.one_hot(gates.argmax(1), self.shape[1]).bool()
        return torch.where(on.any(1, keepdim=True), on, best) & there


class ANNController(Controller):
    """A small network from what is measured of a head to its gate, and to the damage that its removal would do.

    logit = `start` + network(features) + a number of the head's own. At each update a head's logit is pushed down by
    `controller_reg_weight` (the gradient of the L1 norm of the gates) and up by what the head is worth: the damage that
    was measured, or that its gradients let expect (dL/dgate straight through the step from gate to active head, and its
    square for the curvature: at a head that is on, training has made dL/dgate nearly 0 whatever it is worth).

    Each head's push is divided by its own running root mean square, as Adam would if heads shared no parameters:
    otherwise a head without effect, pushed by 1e-4, would not be heard beside others' 1e-2. Logits stay within
    +- `start`, so that switching on takes as long as switching off.

    Args:
        shape: (L, H).
        controller_reg_weight: nats per token that an active head must be worth.
        controller_lr: of Adam.
        hidden: width.
        start: logit that all heads begin with.
        seed: of the first weights.
    """

    mean_square: Tensor
    updates: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        controller_reg_weight: float = 1e-4,
        controller_lr: float = 0.1,
        hidden: int = 16,
        start: float = 3.0,
        seed: int = 0,
    ):
        super().__init__(shape, start)
        self.weight, self.start = controller_reg_weight, start
        with torch.random.fork_rng(devices=[]):  # the training that it joins draws what it would draw without it
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh())
            self.to_logit, self.to_damage = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        nn.init.zeros_(self.to_logit.weight)
        nn.init.zeros_(self.to_logit.bias)
        self.of_head = nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean_square", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        network = [*self.trunk.parameters(), *self.to_logit.parameters(), *self.to_damage.parameters()]
        slow: dict[str, Any] = {
            "params": network,
            "lr": controller_lr / hidden,
        }  # a step of all weights moves a logit `hidden` times
        self.optimizer = torch.optim.Adam([slow, {"params": [self.of_head]}], lr=controller_lr)

    def logits(self, features_LHF: Tensor) -> Tensor:
        """(L, H)."""
        return self.start + self.to_logit(self.trunk(features_LHF))[..., 0] + self.of_head

    def forward(self, features_LHF: Tensor) -> Tensor:
        """(L, H) gates in (0, 1)."""
        return self.logits(features_LHF).sigmoid()

    def predicted_damage(self, features_LHF: Tensor) -> Tensor:
        """(L, H), in the units of `damage_scaled`."""
        return self.to_damage(self.trunk(features_LHF))[..., 0]

    def update(self, metrics: HeadMetrics) -> None:
        features, there = features_of(metrics), metrics.present
        logits = self.logits(features)
        push = self._push(metrics).where(there, 0.0)
        at_limit = ((logits >= self.start) & (push < 0)) | ((logits <= -self.start) & (push > 0))
        loss = (push.where(~at_limit, 0.0) * logits).sum() / there.sum()
        self._descend(loss + self._error(features, metrics))
        with torch.no_grad():
            self.gates.copy_(self(features).where(there, 0.0))

    def learn_damage(self, metrics: HeadMetrics, *, steps: int) -> None:
        """Learn to predict the measured damage, and nothing else."""
        features = features_of(metrics)
        for _ in range(steps if int(_known(metrics).sum()) > 1 else 0):
            self._descend(self._error(features, metrics))

    def _error(self, features_LHF: Tensor, metrics: HeadMetrics) -> Tensor:
        """Mean square of what is predicted wrongly of the heads whose damage is known."""
        known = _known(metrics)
        if int(known.sum()) < 2:
            return torch.zeros(())
        target = damage_scaled(metrics.damage[known]).float()
        return F.mse_loss(self.predicted_damage(features_LHF)[known], target)

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _push(self, metrics: HeadMetrics) -> Tensor:
        """(L, H) what lowers logits, in root mean squares of its own."""
        push = (self.weight + -metrics.damage.where(~metrics.damage.isnan(), metrics.expected)).float()
        self.updates += 1
        self.mean_square.mul_(SMOOTHING).add_(push.square(), alpha=1 - SMOOTHING)
        unbiased = self.mean_square / (1 - SMOOTHING ** int(self.updates))
        return push / unbiased.sqrt().clamp_min(1e-30)

    @torch.no_grad()
    def close(self, heads: Tensor) -> None:
        self.of_head[heads] -= 2 * self.start
        self.gates[heads] = torch.tensor(-self.start).sigmoid()

    def get_extra_state(self) -> Any:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: Any) -> None:
        self.optimizer.load_state_dict(deepcopy(state))  # it would share what it is given


class GateLogits(Controller):
    """A learnable logit for each head, and the rule of the seed of this idea; the simple mode.

    At each update, in units of `controller_lr` x `update_scale`: entropy above 1.5 nats and gate above 0.2: -0.1;
    gradient below 1e-3 and gate above 0.2: -0.05; importance (gradient, min-max normalised) above 0.7 and gate below
    `rise_below`: +0.2; and minus the gradient of 1e-4 x sum of gates (and of the loss) in the logit. Clamped to +-10.

    Two departures, without which it switches nothing: at `update_scale` 1 a head needs 20,010 steps, at 100 it needs
    210 (300 for entropy alone); and the seed raises only gates below 0.1, where none gets, as falling ends at 0.2.

    Args:
        shape: (L, H).
        controller_reg_weight: of the L1 norm of the gates.
        controller_lr: see above.
        update_scale: see above.
        rise_below: see above.
        learn_from_loss: follow dL/dgate, too.
        start: logit that all heads begin with.
    """

    logits: Tensor
    LIMIT = 10.0

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        controller_reg_weight: float = 1e-4,
        controller_lr: float = 0.01,
        update_scale: float = 100.0,
        rise_below: float = 0.9,
        learn_from_loss: bool = False,
        start: float = 3.0,
    ):
        super().__init__(shape, start)
        self.weight, self.lr, self.rise_below = controller_reg_weight, controller_lr * update_scale, rise_below
        self.learn_from_loss, self.start = learn_from_loss, start
        self.register_buffer("logits", torch.full(shape, start))

    @torch.no_grad()
    def update(self, metrics: HeadMetrics) -> None:
        gates = self.gates
        spread, idle = metrics.entropy > 1.5, metrics.gradient < 1e-3
        important = min_max(metrics.gradient, metrics.present) > 0.7
        rise = 0.2 * (important & (gates < self.rise_below)).float()
        fall = (0.1 * spread.float() + 0.05 * idle.float()) * (gates > 0.2)
        pull = self.weight + (metrics.slope.float() if self.learn_from_loss else 0.0)
        change = rise - fall - pull * gates * (1 - gates)
        self.logits.add_(self.lr * change).clamp_(-self.LIMIT, self.LIMIT)
        self.gates.copy_(self.logits.sigmoid().where(metrics.present, 0.0))

    def close(self, heads: Tensor) -> None:
        self.logits[heads] = -self.start
        self.gates[heads] = torch.tensor(-self.start).sigmoid()


def expected_damage(slope: Tensor, square: Tensor, on: Tensor, *, tokens: int) -> Tensor:
    """(L, H) nats per token, from mean and mean square of dL/dgate of losses over so many tokens each."""
    return torch.where(on, tokens * square / 2, 0.0) - slope


def _known(metrics: HeadMetrics) -> Tensor:
    return metrics.present & ~metrics.damage.isnan()


def damage_scaled(damage: Tensor) -> Tensor:
    """Damages of several heads on a scale on which none outweighs the others, standardised. They may be below 0."""
    scaled = torch.asinh(damage / damage.abs().median().clamp_min(1e-12))
    return (scaled - scaled.mean()) / scaled.std().clamp_min(1e-12)


def damage_of(units: Units, sample: Sample, heads: list[tuple[int, int]]) -> Tensor:
    """(L, H) float64, the sample's loss without a head less that with it, whichever it is now; NaN of other heads."""
    found = torch.full(units.shape, math.nan, dtype=torch.float64)
    mask = units.mask
    if not heads:
        return found
    now = sample.mean_loss()
    try:
        for i, head in heads:
            changed = mask.clone()
            changed[i, head] = ~mask[i, head]
            units.set_mask(changed)
            then = sample.mean_loss()
            found[i, head] = then - now if mask[i, head] else now - then
    finally:
        units.set_mask(mask)
    return found


class ControllerImportance(Importance):
    """What the controller's second output predicts: it learns from the measured damage of some heads, and scores all.

    Args:
        share: of the heads whose damage is measured, as `LeaveOneOut` does for all.
        steps: of training the predictor.
        seed: which heads, and the first weights.
    """

    kinds = ("heads",)

    def __init__(self, share: float = 0.5, steps: int = 300, seed: int = 0):
        if not 0 < share <= 1:
            raise InputError(f"share is {share}; it must lie in (0, 1]")
        if steps < 1:
            raise InputError(f"steps is {steps}; it must be at least 1")
        self.share, self.steps, self.seed = share, steps, seed
        self.measured: list[tuple[int, int]] = []  # the heads of the last call

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        alive = units.mask
        heads = [(i, head) for i, head in alive.nonzero().tolist()]
        order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(self.seed)).tolist()
        n = max(min(3, len(heads)), round(self.share * len(heads)))
        self.measured = sorted(heads[i] for i in order[:n])
        gradients, length = gate_gradients(units, sample), sample.batches[0]["input_ids"].shape[1]
        metrics = HeadMetrics(
            entropy=mean_entropy(units, sample),
            gradient=gradients.abs().mean(0),
            age=torch.zeros(units.shape),
            slope=gradients.mean(0),
            expected=expected_damage(gradients.mean(0), gradients.square().mean(0), alive, tokens=length),
            damage=damage_of(units, sample, self.measured),
        )
        predictor = ANNController(units.shape, controller_lr=0.01, seed=self.seed)
        predictor.learn_damage(metrics, steps=self.steps)
        with torch.no_grad():
            scores = predictor.predicted_damage(features_of(metrics)).double()
        scores = scores.where(alive, scores.min() - 1)  # what is dead already is missed by no one
        return scores.where(units.present, math.nan)
