"""What the experiment on plasticity does: strategies, arms, and all sizes that decide its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from experiments import criteria, plans
from experiments.runs import Training
from lightning_app.plasticity.importance import (
    EntropyImportance,
    GradientImportance,
    GradientNormImportance,
    Importance,
    LeaveOneOut,
    MagnitudeImportance,
    RandomImportance,
    SeedImportance,
    TaylorImportance,
)

DEFAULT, UNPRUNED, OTHER_ORDER = "Taylor", "unpruned", "unpruned, other order"
SMALLER, ALL_OFF, MAGNITUDE = "smaller from scratch", "all heads off", "magnitude"
FROZEN, FINISHED = "taught", "taught by the finished"  # by the unpruned model as it was, and as its training left it
DRAWS = 5
RULES = plans.read("plasticity")
LEVELS = (0.15, 0.3, 0.5, 0.75)
STRATEGIES: dict[str, Importance] = {
    DEFAULT: TaylorImportance(),
    "gradient": GradientImportance(),
    "seed's mix": SeedImportance(),
    "seed's gradient norm": GradientNormImportance(),
    "entropy": EntropyImportance(),
    MAGNITUDE: MagnitudeImportance(),
    "leave one out": LeaveOneOut(),
    **{f"random {i}": RandomImportance(seed=i) for i in range(DRAWS)},
}
RANDOM = tuple(name for name in STRATEGIES if name.startswith("random"))


@dataclass(frozen=True)
class Arm:
    """How a model goes on from where all are the same.

    Attributes:
        level: share of the heads that go.
        neurons: share of the feed-forward neurons.
        regrow: heads more that go, and come back where they are missed most.
        layer_factor: of the learning rate of blocks that lost heads.
        rising: the level rises while the model trains (Zhu and Gupta 2017, arXiv:1710.01878).
        teacher: FROZEN or FINISHED, whose predictions are learned too; empty: none.
        longer: as many CPU seconds as with a teacher.
    """

    strategy: str
    level: float = 0.0
    neurons: float = 0.0
    regrow: int = 0
    layer_factor: float = 1.0
    rising: bool = False
    teacher: str = ""
    longer: bool = False

    @property
    def name(self) -> str:
        """Strategy, level, and whatever differs from one shot at heads alone."""
        shown = {
            f"{self.level:.0%}": bool(self.level) and self.strategy != ALL_OFF,
            f"{self.neurons:.0%} of neurons": self.neurons,
            f"{self.regrow} regrown": self.regrow,
            f"layers x {self.layer_factor:g}": self.layer_factor != 1,
            "rising": self.rising,
            self.teacher: self.teacher,
            "longer": self.longer,
        }
        return ", ".join([self.strategy, *(text for text, there in shown.items() if there)])


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        train, heldout: texts to learn, and to measure importance and choose on.
        test: the text to score; None: the second half of `heldout`.
        training: of the model; its steps come before the pruning, at a constant learning rate.
        finetuning: steps after it, in which the learning rate falls to `floor` by a cosine.
        rises: when a budget that rises begins, and how many steps lie between two of its prunings.
        sample: sequences that importance is measured on, in batches of 8.
        blocks: of the test text that are scored.
        splits: of the heads into those that a controller learns from and those that it is asked for.
        criteria: of the part on when to prune.
    """

    train: str
    heldout: str
    test: str | None = None
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    vocab_size: int = 1024
    model: dict[str, Any] = field(
        default_factory=lambda: {"embedding_dim": 128, "layers": 4, "heads": 8, "positions": "rotary"}
    )
    training: Training = Training(group=1, steps=600, warmup_steps=50)  # noqa: RUF009  (frozen)
    finetuning: int = 200
    rises: tuple[int, int] = (300, 25)
    floor: float = 0.05
    sample: int = 96
    blocks: int = 192
    splits: int = 10
    criteria: criteria.Options = criteria.Options()  # noqa: RUF009  (frozen)

    @property
    def fingerprint(self) -> str:
        """Of the plan and the texts; which arms there are does not change the results of others."""
        return plans.fingerprint(self, texts=(self.train, self.heldout, self.test))

    @property
    def decoder(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "block_size": self.training.block_size, **self.model}

    @property
    def model_name(self) -> str:
        return name_of_model(self.model)

    @property
    def rising_steps(self) -> list[int]:
        """After which steps of the whole training a rising budget prunes: the last half of it is to recover in."""
        begins, every = self.rises
        return list(range(begins, self.training.steps + self.finetuning // 2 + 1, every))


def name_of_model(options: Mapping[str, Any]) -> str:
    """Its sizes in words, for who reads losses of several."""
    return f"{options['layers']} layers of {options['embedding_dim']}"


def quick(plan: Plan) -> Plan:
    """The same in small, to see that it runs."""
    model = plan.model | {"embedding_dim": 64, "layers": 2}
    training = replace(plan.training, steps=40, warmup_steps=10)
    return replace(
        plan,
        seeds=plan.seeds[:1],
        model=model,
        training=training,
        finetuning=12,
        rises=(20, 8),
        sample=16,
        blocks=16,
        splits=2,
        criteria=criteria.quick(plan.criteria),
    )


def arms() -> list[Arm]:
    """All; the first ones are what the others are held against."""
    scale = [Arm(UNPRUNED), Arm(OTHER_ORDER), Arm(ALL_OFF, 1.0)]
    levels = [Arm(DEFAULT, level) for level in LEVELS]
    smaller = [Arm(SMALLER, level) for level in LEVELS]
    draws = [Arm(name, level) for level in (0.3, 0.5) for name in RANDOM]
    others = [Arm(name, 0.5) for name in ("gradient", MAGNITUDE, "seed's mix")]
    neurons = [Arm(DEFAULT, neurons=0.3), Arm(DEFAULT, 0.5, neurons=0.3)]
    ideas = [Arm(DEFAULT, 0.5, regrow=3), Arm(DEFAULT, 0.5, layer_factor=3.0)]
    ideas += [Arm(DEFAULT, level, rising=True) for level in (0.5, 0.75)]
    taught = [Arm(UNPRUNED, teacher=teacher) for teacher in (FROZEN, FINISHED)]
    taught += [Arm(DEFAULT, 0.75, teacher=teacher) for teacher in (FROZEN, FINISHED)]
    longer = [Arm(UNPRUNED, longer=True), Arm(DEFAULT, 0.75, longer=True)]
    return [*scale, *levels, *smaller, *draws, *others, *neurons, *ideas, *taught, *longer]
