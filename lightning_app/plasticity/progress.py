"""How far a run with neural plasticity has come: what its checkpoint holds beside the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.phases import LASTING, Position


@dataclass
class Progress:
    """The state of a `PlasticitySchedule`.

    Attributes:
        left: where `at` was when it last was in a phase that lasts.
        losses: of this warmup, the newest last.
        scores: of this cycle's analysis, by kind; made and used between two steps, so no checkpoint has them.
        ce_at_start: cross-entropy on the sample at the start of this cycle, in nats per token.
        baseline: what the model cost at first.
        cost: what it cost when it was measured last.
        proved: by what it is of and the name of the proof, for the end.
        factors: (L, H) of the heads' updates, while this cycle's fine-tuning lasts.
        snapshot: of the state before this cycle, if it may be undone.
    """

    at: Position = field(default_factory=Position)
    left: Position = field(default_factory=Position)
    started: bool = False
    losses: list[float] = field(default_factory=list)
    scores: dict[Kind, Tensor] = field(default_factory=dict)
    ce_at_start: float = math.nan
    baseline: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    proved: dict[str, float] = field(default_factory=dict)
    factors: Tensor | None = None
    snapshot: dict[str, Any] | None = None

    def move(self, to: Position) -> None:
        if self.at.phase in LASTING:
            self.left = self.at
        self.at = to

    def state_dict(self) -> dict[str, Any]:
        """In plain types and tensors. A phase that failed half-way is done again."""
        at = self.at if self.at.phase in (*LASTING, "done") else self.left
        return {
            "at": [at.phase, at.cycle, at.steps],
            "started": self.started,
            "losses": list(self.losses),
            "ce_at_start": self.ce_at_start,
            "baseline": dict(self.baseline),
            "cost": dict(self.cost),
            "proved": dict(self.proved),
            "factors": self.factors,
            "snapshot": self.snapshot,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        phase, cycle, steps = state["at"]
        self.at, self.started = Position(phase, cycle, steps), state["started"]
        self.losses, self.ce_at_start = list(state["losses"]), state["ce_at_start"]
        self.baseline, self.cost, self.proved = dict(state["baseline"]), dict(state["cost"]), dict(state["proved"])
        self.factors, self.snapshot = state["factors"], state["snapshot"]
