"""Ways to learn a second domain after a first one: what each adds to plain fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.chosen import AT_RANDOM, BY_ART, BY_KMEANS, NETWORK, OF_TOKENS
from experiments.keeping import EWC, Draw, LwF, Prototypes, Rehearsed, Settled
from experiments.runs import Training, training_batches
from lightning_app.art.extension import ARTRegularizer
from lightning_app.art.network import SPAN
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.former import options_of_today
from lightning_app.models.backbone import Backbone
from lightning_app.models.extension import Regularizer
from lightning_app.training.compositions import CausalLM
from lightning_app.training.module import LanguageModule

PULL = 1e-3  # lambda_art of rehearsal, so that nothing but rehearsal matters
SLOW = 0.9999  # decay: over a few hundred steps the averaged model stays nearly what it was
USUAL = 0.999  # the product's default


@dataclass(frozen=True)
class Arm:
    """What is added.

    Attributes:
        kind: `plain`, `frozen`, `ewc`, `lwf`, `in` and `on` (replay inside the batch and on top of it), `prototypes`,
            `samples`, `texts`, `live` (ART's texts as in the product) or `novelty`.
        choice: of what is kept, see `experiments.chosen`.
        decay: of the averaged model that it is held to; 1: the model before; None: the texts' own next tokens.
        novelty: loss of a novel text.
        lr, strength: those of the first trial. A strength of 0 means that none is chosen.
    """

    kind: str
    choice: str = ""
    decay: float | None = None
    novelty: str = ""
    lr: float = 1e-3
    strength: float = 0.0

    @property
    def stores_text(self) -> bool:
        """Whether it keeps text of the first domain."""
        return self.kind in ("in", "on", "texts", "live")

    @property
    def has_categories(self) -> bool:
        return self.choice == BY_ART or self.kind in ("live", "novelty")


PLAIN, FROZEN, EWC_ARM, LWF = "plain", "frozen output matrix", "EWC", "LwF"
IN_BATCH, ON_TOP = "replay, in the batch", "replay, on top"
PROTOTYPES = {choice: f"prototypes, {choice}" for choice in (BY_ART, BY_KMEANS, AT_RANDOM)}
SAMPLES = {choice: f"own samples, {choice}" for choice in (BY_ART, BY_KMEANS)} | {AT_RANDOM: "own samples, plainly"}
TEXTS = {choice: f"rehearsal, {choice}" for choice in (BY_ART, BY_KMEANS, AT_RANDOM)}
FASTER, OWN = "rehearsal, ART, average 0.999", "rehearsal, ART, own tokens"
LIVE = "rehearsal, ART, going on"
NOVELTY = {f"novelty, {term}": term for term in ("constant", "margin", "drift")}
ARMS: dict[str, Arm] = {
    PLAIN: Arm("plain"),
    FROZEN: Arm("frozen"),
    EWC_ARM: Arm("ewc", lr=2e-3, strength=30.0),
    IN_BATCH: Arm("in"),
    ON_TOP: Arm("on", strength=0.3),
    LWF: Arm("lwf", strength=1.0),
    **{name: Arm("prototypes", choice, decay=1.0, strength=1.0) for choice, name in PROTOTYPES.items()},
    **{name: Arm("samples", choice, decay=1.0, strength=1.0) for choice, name in SAMPLES.items()},
    **{name: Arm("texts", choice, decay=SLOW, strength=0.3) for choice, name in TEXTS.items()},
    FASTER: Arm("texts", BY_ART, decay=USUAL, strength=0.3),
    OWN: Arm("texts", BY_ART, strength=0.3),
    LIVE: Arm("live", decay=USUAL, strength=0.3),
    **{name: Arm("novelty", novelty=term, strength=0.3) for name, term in NOVELTY.items()},
}
SETUP = {"ewc": "fisher", "novelty": "network", "live": "network"}  # what is computed before the second domain comes
REHEARSED = 4  # texts of `SPAN` tokens in each step: as many tokens as a row has


def settings() -> list[object]:
    """All of this file that decides results."""
    return [{name: vars(arm) for name, arm in ARMS.items()}, NETWORK, OF_TOKENS, PULL, REHEARSED]


def setup_seconds(arm: Arm, seconds: Mapping[str, float]) -> float:
    """CPU seconds that what it keeps took to make."""
    return float(seconds.get(SETUP.get(arm.kind, f"{arm.kind}, {arm.choice}"), 0.0))


def holds(arm: Arm, kept: Mapping[str, Any]) -> int:
    """Texts, prototypes or samples that it keeps, before the second domain comes."""
    name = f"texts, {BY_ART}" if arm.kind == "live" else f"{arm.kind}, {arm.choice}"
    return len(kept[name]) if name in kept else 0


def new_module(
    arm: Arm,
    strength: float,
    backbone: Backbone,
    kept: Mapping[str, Any],
    old: TokenArray,
    training: Training,
    seed: int,
) -> LanguageModule:
    """An arm that starts from a model of the first domain.

    Args:
        kept: see `experiments.chosen.kept`.
        old: the first domain's training text, for replay.
    """
    regularizer = _regularizer(arm, strength, kept, old, training, seed)
    if arm.kind == "frozen":
        backbone.get_parameter("lm_head.weight").requires_grad_(False)
    module = CausalLM(backbone, extensions=[] if regularizer is None else [regularizer])
    if isinstance(regularizer, ARTRegularizer):
        regularizer.art.load_state_dict(kept["network"])
    return module


def _regularizer(
    arm: Arm, strength: float, kept: Mapping[str, Any], old: TokenArray, training: Training, seed: int
) -> Regularizer | None:
    if arm.kind == "ewc":
        return EWC(strength, kept["fisher"])
    if arm.kind == "lwf":
        return LwF(strength)
    if arm.kind == "prototypes":
        return Prototypes(strength, kept[f"prototypes, {arm.choice}"])
    if arm.kind == "samples":
        return Rehearsed(strength, drawn(kept[f"samples, {arm.choice}"], 1, seed), arm.decay)
    if arm.kind == "on":
        return Rehearsed(strength, rows(old, training, seed), None)
    if arm.kind == "novelty":
        return Settled(lambda_art=strength, novelty=arm.novelty, **NETWORK)
    if arm.kind == "texts":
        return Rehearsed(strength, drawn(kept[f"texts, {arm.choice}"], REHEARSED, seed), arm.decay)
    return _live(strength) if arm.kind == "live" else None


def _live(strength: float) -> ARTRegularizer:
    """The product's rehearsal: its categories go on to learn, and draw by their own rules."""
    options = {"average_decay": USUAL, "rehearsed_texts": REHEARSED, **NETWORK}
    return ARTRegularizer(lambda_art=PULL, rehearsal=strength / PULL, **options_of_today(options, "ARTRegularizer"))


def drawn(texts: Tensor, n: int, seed: int) -> Draw:
    """`n` of the texts, each as likely, anew in each call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: texts[torch.randint(len(texts), (n,), generator=generator)]


def rows(text: TokenArray, training: Training, seed: int) -> Draw:
    """A row of a training text in each call, and the token behind it: as many as a step rehearses are predicted."""
    batches = training_batches(text, replace(training, batch_size=1, group=1), seed + 1000)
    return lambda: _with_next(next(batches))


def _with_next(batch: Batch) -> Tensor:
    return torch.cat([batch.input_ids, batch.targets[:, -1:]], dim=1)


def batches_of(arm: Arm, first: TokenArray, second: TokenArray, training: Training, seed: int) -> Iterator[Batch]:
    """Of the second domain; with replay inside the batch one row of each is of the first domain."""
    new = training_batches(second, training, seed)
    if arm.kind != "in":
        yield from new
    n = min(training.batch_size - 1, max(1, round(REHEARSED * SPAN / training.block_size)))
    old = training_batches(first, replace(training, batch_size=n, group=1), seed + 1000)
    for batch in new:
        pairs = zip(vars(batch).items(), vars(next(old)).values(), strict=True)
        yield Batch(**{name: torch.cat([ours[n:], theirs]) for (name, ours), theirs in pairs})
