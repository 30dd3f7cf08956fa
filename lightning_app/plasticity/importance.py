"""How much a model would miss each of its units: one class for each way to measure it.

All score units (L, N) in float64: the higher, the more it would be missed; NaN where a unit has been removed.

Shapes: L layers, N units, B sequences of a batch, S sequences of the sample.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.io import write_atomic
from lightning_app.models.modes import evaluated
from lightning_app.plasticity.kinds import AttentionHeads
from lightning_app.plasticity.scores import by_relative_depth, seed_score
from lightning_app.plasticity.units import Units


@dataclass(frozen=True)
class Sample:
    """What importance is measured on; the same on every rank.

    Attributes:
        batches: of sequences; `input_ids` (B, T) are looked at here, the rest by `loss`.
        loss: of a batch, (B,) nats per token of each sequence.
    """

    batches: Sequence[Batch]
    loss: Callable[[Batch], Tensor]

    @torch.no_grad()
    def mean_loss(self) -> float:
        """Nats per token, each sequence counted alike."""
        return float(torch.cat([self.loss(batch).double() for batch in self.batches]).mean())


class Importance(ABC):
    """A way to measure importance.

    Attributes:
        kinds: of units that it can score.
    """

    kinds: tuple[str, ...] = ("heads", "neurons")

    @abstractmethod
    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        """(L, N) for the units of a model in eval mode; it computes afterwards what it did before.

        Args:
            keep: how many units are to stay alive, for those that look for the best set of so many.

        Raises:
            InputError: gradients are needed, and switched off.
        """

    @property
    def name(self) -> str:
        return type(self).__name__


def gate_gradients(units: Units, sample: Sample, *, open_masks: bool = False) -> Tensor:
    """(S, L, N) float64 dL/dgate of each sequence's loss; of dead units too, if `open_masks`.

    Raises:
        InputError: gradients are switched off.
    """
    _need_gradients("the gradient at the gates")
    found = []
    for batch in sample.batches:
        with units.gates(rows=len(batch.input_ids), open_masks=open_masks) as leaves:
            gradients = torch.autograd.grad(sample.loss(batch).sum(), leaves, materialize_grads=True)
            found.append(units.from_leaves(gradients))
    return torch.cat(found)


def _need_gradients(what: str) -> None:
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise InputError(f"{what} cannot be measured under torch.no_grad: call it with gradients on")


def _of_present(scores: Tensor, units: Units) -> Tensor:
    return scores.where(units.present, math.nan)


class GateImportance(Importance):
    """Needs the gradients at the gates alone: whoever has them needs no further pass over the sample."""

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        return self.by_gradients(gate_gradients(units, sample), units, sample)

    def by_gradients(self, gradients: Tensor, units: Units, sample: Sample) -> Tensor:
        """(S, L, N) of `gate_gradients` -> (L, N) scores."""
        length = sample.batches[0].input_ids.shape[1]
        return _of_present(self._moments(gradients, length), units)

    @abstractmethod
    def _moments(self, gradients: Tensor, length: int) -> Tensor:
        """(S, L, N) of sequences of `length` tokens -> (L, N)."""


class GradientImportance(GateImportance):
    """E |dL/dgate| over sequences (Michel et al. 2019, arXiv:1905.10650, eq. 2), or another moment of it.

    Args:
        moment: 1 for the mean of the absolute value; 2 for that of the square, the diagonal of the gates' Fisher
            information (Kwon et al. 2022, arXiv:2204.09656, eq. 5).
        normalise: divide by the l2 norm of each layer's scores, as Michel et al. do.
    """

    def __init__(self, moment: int = 1, normalise: bool = False):
        if moment not in (1, 2):
            raise InputError(f"moment is {moment}; it must be 1 or 2")
        self.moment, self.normalise = moment, normalise

    def _moments(self, gradients: Tensor, length: int) -> Tensor:
        found = gradients.abs().pow(self.moment).mean(0)
        return found / found.norm(dim=1, keepdim=True).clamp_min(1e-30) if self.normalise else found


class TaylorImportance(GateImportance):
    """What the loss becomes without a unit, by its Taylor series in the gate up to the second order: -g + h / 2.

    g = E[dL/dgate], and the curvature h = T E[(dL/dgate)^2] over sequences of T tokens: the Fisher information of a
    token, as the gradients of tokens add up like independent draws (LeCun et al. 1989, optimal brain damage, eq. 3,
    with a first-order term, since a gate is not at its minimum). Nearly the order of `LeaveOneOut`, for one pass.
    """

    def _moments(self, gradients: Tensor, length: int) -> Tensor:
        return length * gradients.square().mean(0) / 2 - gradients.mean(0)


class GradientNormImportance(Importance):
    """Norm of the loss's gradient in the weights of a unit: what the seed of this idea calls importance."""

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        _need_gradients("the gradient of the weights")
        parameters = [part.parameter for layer in units.layers for part in layer.parts]
        total = [torch.zeros_like(parameter) for parameter in parameters]
        with _trainable(parameters):
            for batch in sample.batches:
                gradients = torch.autograd.grad(sample.loss(batch).mean(), parameters)
                for sum_, gradient in zip(total, gradients, strict=True):
                    sum_ += gradient / len(sample.batches)
        return _of_present(_norms(units, total), units)


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """What is frozen, as beside adapters, takes a gradient for a while."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class MagnitudeImportance(Importance):
    """l2 norm of all weights of a unit."""

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        found = _norms(units, [part.parameter.detach() for layer in units.layers for part in layer.parts])
        return _of_present(found, units)


def _norms(units: Units, of_parts: Sequence[Tensor]) -> Tensor:
    """(L, N) l2 norm of what units have in tensors like all parts' parameters."""
    tensors, rows = iter(of_parts), []
    for layer in units.layers:
        squares = torch.zeros(len(layer.present), dtype=torch.float64)
        for part in layer.parts:
            x = next(tensors).double().square().movedim(part.dim, 0)
            along = x.reshape(len(x), -1).sum(1).cpu()
            squares += along[part.positions(layer.present)].sum(1)
        rows.append(squares.sqrt())
    return units.from_leaves(rows)


class EntropyImportance(Importance):
    """Heads that attend to a few positions count for more: minus the entropy of their attention.

    Args:
        rows: sampled query positions.
        reverse: the other way round.
    """

    kinds = ("heads",)

    def __init__(self, rows: int = 16, reverse: bool = False):
        self.rows, self.reverse = rows, reverse

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        return mean_entropy(units, sample, rows=self.rows) * (1 if self.reverse else -1)


def mean_entropy(units: Units, sample: Sample, *, rows: int = 16) -> Tensor:
    """(L, H) nats over the sample."""
    assert isinstance(units, AttentionHeads)
    return torch.stack([units.entropy(b.input_ids, rows=rows, seed=i) for i, b in enumerate(sample.batches)]).mean(0)


class SeedImportance(Importance):
    """Minus the mix that the seed of this idea prunes by: 0.6 entropy + 0.4 (1 - gradient norm), each min-max
    normalised over all heads."""

    kinds = ("heads",)

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        norms = GradientNormImportance().scores(units, sample, keep=keep)
        return -seed_score(mean_entropy(units, sample), norms)


class RandomImportance(Importance):
    """Any order, always the same for a seed."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        drawn = torch.rand(units.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        return _of_present(drawn, units)


class LeaveOneOut(Importance):
    """What the loss becomes without the unit, less what it is: exact and slow, a pass over the sample for each."""

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        found = torch.full(units.shape, math.nan, dtype=torch.float64)
        mask = units.mask
        found[units.present & ~mask] = 0.0
        with units.gates() as leaves, torch.no_grad():
            whole = sample.mean_loss()
            for i, unit in mask.nonzero().tolist():
                place = units.layers[i].present.index(unit)
                leaves[i][place] = 0.0
                found[i, unit] = sample.mean_loss() - whole
                leaves[i][place] = 1.0
        return found


class LearnedGates(Importance):
    """Gates that are learned by gradient descent on the sample, with the model as it is.

    Args:
        steps: of Adam, a batch of the sample each.
        lr: its learning rate.
        seed: of what gates draw.
    """

    def __init__(self, steps: int = 200, lr: float = 0.1, seed: int = 0):
        if steps < 1:
            raise InputError(f"steps is {steps}; it must be at least 1")
        self.steps, self.lr, self.seed = steps, lr, seed

    @abstractmethod
    def start(self, units: Units) -> Tensor:
        """(L, N) logits to begin with."""

    @abstractmethod
    def gates(self, logits: Tensor, alive: Tensor, share: float, keep: int, generator: torch.Generator) -> Tensor:
        """(L, N) gates, drawn, with a gradient; `share` of the steps are done."""

    def penalty(self, logits: Tensor, alive: Tensor) -> Tensor:
        """Added to the loss."""
        return torch.zeros(())

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        _need_gradients("the gradient at learned gates")
        alive, generator = units.mask, torch.Generator().manual_seed(self.seed)
        logits = self.start(units).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.lr)
        with units.gates() as leaves:
            for step in range(self.steps):
                gates = self.gates(logits, alive, step / self.steps, keep, generator).where(alive, 0.0)
                with torch.no_grad():
                    for leaf, row, layer in zip(leaves, gates, units.layers, strict=True):
                        leaf.copy_(row[layer.present])
                loss = sample.loss(sample.batches[step % len(sample.batches)]).mean()
                gradients = units.from_leaves(torch.autograd.grad(loss, leaves, materialize_grads=True))
                optimizer.zero_grad()
                ((gates * gradients.to(gates)).sum() + self.penalty(logits, alive)).backward()
                optimizer.step()
        return _of_present(logits.detach().double(), units)


class HardConcreteImportance(LearnedGates):
    """Hard Concrete gates under an L0 penalty (Louizos et al. 2018, arXiv:1712.01312, eq. 10 to 12), of heads as in
    Voita et al. 2019 (arXiv:1905.09418, eq. 5). The score is log alpha.

    Args:
        weight: lambda of the expected number of open gates, in nats per token for all of them.
        learning: see `LearnedGates`.
    """

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

    def __init__(self, weight: float = 0.5, **learning: float):
        super().__init__(**learning)  # type: ignore[arg-type]
        self.weight = weight

    def start(self, units: Units) -> Tensor:
        return torch.full(units.shape, 2.0)

    def gates(self, logits: Tensor, alive: Tensor, share: float, keep: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid((u.logit() + logits) / self.BETA)
        return (s * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)

    def penalty(self, logits: Tensor, alive: Tensor) -> Tensor:
        is_open = torch.sigmoid(logits - self.BETA * math.log(-self.GAMMA / self.ZETA))
        return self.weight * is_open[alive].mean()


class SubsetImportance(LearnedGates):
    """The best set of exactly `keep` units: a differentiable draw of so many without replacement (Li et al. 2021,
    arXiv:2108.04657, section 4; the relaxed top-k of Xie and Ermon 2019, arXiv:1901.10517, eq. 5). The score is
    the logit.

    Args:
        learning: see `LearnedGates`; the temperature falls from 2 to 0.1.
    """

    kinds = ("heads",)  # a draw takes `keep` steps, and remembers them all: too much for thousands of neurons

    def start(self, units: Units) -> Tensor:
        return torch.zeros(units.shape)

    def gates(self, logits: Tensor, alive: Tensor, share: float, keep: int, generator: torch.Generator) -> Tensor:
        temperature = 2.0 * 0.05**share
        u = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        keys = (logits - (-u.log()).log())[alive]
        taken = torch.zeros_like(keys)
        for _ in range(min(keep, len(keys))):
            chosen = (keys / temperature).softmax(0)
            taken = taken + chosen
            keys = keys + (1 - chosen).clamp_min(1e-6).log()
        return torch.zeros(logits.shape).masked_scatter(alive, taken.clamp(max=1))


class SavedImportance(Importance):
    """What another run has found; of a model of another size the map is stretched over depth.

    Units that it had removed before it measured are the least important of all.

    Args:
        path: of a file that `save_importance` wrote.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [[math.nan if x is None else float(x) for x in row] for row in saved["importance"]]
            self.map, self.kind = torch.tensor(rows, dtype=torch.float64), str(saved["kind"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} holds no importance map ({type(error).__name__}: {error}): give the importance/*.json of a run"
            ) from error
        if bool(self.map.isnan().all()):
            raise InputError(f"{path} has no number in its importance map: give that of another cycle")
        self.kinds, self.least = (self.kind,), float(self.map[~self.map.isnan()].min())

    def scores(self, units: Units, sample: Sample, *, keep: int) -> Tensor:
        found = by_relative_depth(self.map, units.shape)
        found = found.where(~found.isnan(), self.least - 1)
        return _of_present(found, units)


def save_importance(path: Path, importance: Tensor, *, kind: str, strategy: str) -> None:
    """(L, N) as JSON, for `SavedImportance`."""
    rows = [[None if math.isnan(x) else x for x in row] for row in importance.tolist()]
    line = json.dumps({"kind": kind, "strategy": strategy, "importance": rows}) + "\n"
    write_atomic(path, line.encode())


def measured(strategy: Importance, units: Units, sample: Sample, *, keep: int) -> Tensor:
    """`strategy.scores` of a model that is put into eval mode for it."""
    if units.kind not in strategy.kinds:
        raise InputError(f"{strategy.name} cannot score {units.kind}: choose another strategy for them")
    with evaluated(units.backbone):
        return strategy.scores(units, sample, keep=keep)
