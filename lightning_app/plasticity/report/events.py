"""The events of a run with neural plasticity.

Letters of a shape: L layers, H heads. Layers and heads count from 0. "cycle" counts from 1; 0: before the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_app.reports.record import Event, Row

Matrix = list[list[float | None]]  # L x H; None where nothing was measured


@dataclass(frozen=True, kw_only=True)
class PlasticityStarted(Event):
    """Before the first phase.

    Attributes:
        shape: L and H.
        units: (layers, units of each) by kind, "heads" or "neurons".
        query_heads: of a head: more than 1 where they share keys and values, so that "heads" are groups of them.
        head_parameters_share: parameters of all heads, of the model's.
        cycles, ..., automatic: see `plasticity.phases.Plan`.
    """

    NAME = "plasticity_started"
    is_of_the_whole = True
    shape: list[int] | None
    units: dict[str, list[int]] | None
    query_heads: int | None
    targets: list[str] | None
    strategy: str | None
    surgery: str | None
    pruning_level: float | list[float] | None
    head_parameters_share: float | None
    cycles: int | None
    training_steps: int | None
    warmup_steps: int | None
    finetuning_steps: int | None
    until_stable: bool | None
    regrows: bool | None
    automatic: bool | None


@dataclass(frozen=True, kw_only=True)
class PhaseTransition(Event):
    """A phase begins."""

    NAME = "phase_transition"
    phase: str | None
    cycle: int | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Stabilised(Event):
    """A warmup is over.

    Attributes:
        rule: that decided; see `plasticity.stabilization`.
        window: losses that it looked at.
        losses: those, in nats per token.
        after: steps of the warmup.
        stable: False: it had lasted long enough.
    """

    NAME = "stabilised"
    cycle: int | None
    rule: str | None
    window: int | None
    statistic: float | None
    losses: list[float | None] | None
    after: int | None
    stable: bool | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Analysis(Event):
    """What was measured of each head (L, H).

    Attributes:
        strategy: of the importance.
        alive: 1 and 0.
        gradient: mean |dL/dgate|.
        entropy: of its attention, in nats.
    """

    NAME = "analysis"
    cycle: int | None
    strategy: str | None
    alive: list[list[int]] | None
    importance: Matrix | None
    gradient: Matrix | None
    entropy: Matrix | None


@dataclass(frozen=True, kw_only=True)
class Pruning(Event):
    """Heads or neurons were removed, or masked.

    Attributes:
        target: "heads" or "neurons".
        heads: layer and head of each.
        scores: its importance.
        reasons: why each was chosen; `reason`: why so many were.
        alive: (L, H) of 1 and 0 afterwards.
        removed: neurons by layer.
        widths: neurons that each layer has left.
    """

    NAME = "pruning_event"
    changes_model = True
    cycle: int | None
    target: str | None
    reason: str | None
    heads: list[list[int]] | None = None
    scores: list[float] | None = None
    reasons: list[str] | None = None
    alive: list[list[int]] | None = None
    removed: list[int] | None = None
    widths: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Regrowth(Event):
    """Heads came back.

    Attributes:
        scores: how much each was missed.
        how: "undo" as they were, "new" with new weights.
    """

    NAME = "regrowth_event"
    changes_model = True
    cycle: int | None
    heads: list[list[int]] | None
    scores: list[float] | None
    how: str | None
    reason: str | None
    alive: list[list[int]] | None


@dataclass(frozen=True, kw_only=True)
class Rollback(Event):
    """The model went back to before this cycle.

    Attributes:
        ce: nats per token after the fine-tuning; at most `limit` would have been kept.
    """

    NAME = "rollback"
    changes_model = True
    cycle: int | None
    ce: float | None
    limit: float | None
    reason: str | None
    alive: list[list[int]] | None


@dataclass(frozen=True, kw_only=True)
class Proof(Event):
    """What was checked after a change: a difference, a count, or whether something holds, by name."""

    NAME = "proof"
    cycle: int | None
    checks: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Event):
    """Measures of the seeded sample.

    Attributes:
        stage: "baseline", "before", "pruned", "regrown", "recovered"; a phase's name within it.
        ce: nats per token.
        sparsity: share of the heads that are dead.
    """

    NAME = "evaluation"
    cycle: int | None
    stage: str | None
    ce: float | None
    ppl: float | None
    sparsity: float | None


@dataclass(frozen=True, kw_only=True)
class TextSample(Row):
    """What the model writes for a prompt; `text` begins with it."""

    prompt: str | None
    text: str | None


@dataclass(frozen=True, kw_only=True)
class TextSamples(Event):
    """What the model writes at a stage."""

    NAME = "text_samples"
    stage: str | None
    texts: list[TextSample] | None


@dataclass(frozen=True, kw_only=True)
class GroupRate(Row):
    """The learning rate of a group of the optimizer, `factor` times that of the schedule."""

    name: str | None
    lr: float | None
    factor: float | None


@dataclass(frozen=True, kw_only=True)
class LearningRates(Event):
    """The learning rates of the optimizer's groups where they were set."""

    NAME = "learning_rates"
    groups: list[GroupRate] | None


@dataclass(frozen=True, kw_only=True)
class ControllerUpdate(Event):
    """What a controller decided (gates) and saw (L, H).

    Attributes:
        active: heads that are switched on, of `total`.
    """

    NAME = "controller_update"
    gates: Matrix | None
    entropy: Matrix | None
    gradient: Matrix | None
    active: int | None
    total: int | None
    alive: list[list[int]] | None


KINDS = (
    PlasticityStarted,
    PhaseTransition,
    Stabilised,
    Analysis,
    Pruning,
    Regrowth,
    Rollback,
    Proof,
    Evaluation,
    TextSamples,
    LearningRates,
    ControllerUpdate,
)
