"""Ways to learn a second domain after a first one: what each adds to plain fine-tuning.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_app.art.extension import ARTRegularizer
from lightning_app.art.network import SPAN
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.former import options_of_today
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs, Regularizer
from lightning_app.training.checkpoint import start_from
from lightning_app.training.checkpoint_keys import OF_EXTENSIONS
from lightning_app.training.compositions import CausalLM
from lightning_app.training.module import LanguageModule

PLAIN, EWC_ARM, REPLAY, FROZEN = "plain", "EWC", "replay 5 %", "frozen, new head"
REHEARSAL, RANDOM = "ART, rehearsal", "random texts, rehearsal"
REPLAYED = 0.05  # share of the rows that come from the first domain
PULL = 0.1  # lambda_art of the arms whose strength is that of the rehearsal
SHOWN = 1000
SLOW_AVERAGE = 0.9999  # decay: over a few hundred steps the averaged model stays what it was
ART_OPTIONS: dict[str, dict[str, Any]] = {
    "ART, constant": {"novelty": "constant", "vigilance_quantile": 0.05},
    "ART, margin": {"novelty": "margin", "vigilance_quantile": 0.05},
    "ART, drift": {"novelty": "drift", "vigilance_quantile": 0.05},
    "ART, drift per token": {"novelty": "drift", "pooling": "token", "vigilance": 0.999, "learn_at_most": 32},
    REHEARSAL: {"novelty": "drift", "vigilance": 0.9, "rehearsed_texts": 4},
    RANDOM: {"novelty": "constant", "vigilance": 0.9, "rehearsed_texts": 4},
}
ARMS = (PLAIN, *ART_OPTIONS, EWC_ARM, REPLAY, FROZEN)


@dataclass(frozen=True)
class Trial:
    """How an arm is trained: the learning rate, and how strong what it adds is (0: nothing to choose)."""

    lr: float
    strength: float = 0.0


def trials(arm: str) -> list[Trial]:
    """As many for each arm."""
    if arm in (PLAIN, REPLAY):
        return [Trial(5e-4), Trial(1e-3), Trial(2e-3), Trial(4e-3)]
    if arm == FROZEN:
        return [Trial(1e-3), Trial(2e-3), Trial(4e-3), Trial(8e-3)]
    weak, middle, strong = {
        EWC_ARM: (1.0, 10.0, 100.0),
        REHEARSAL: (0.1, 0.3, 1.0),
        RANDOM: (0.1, 0.3, 1.0),
        "ART, drift per token": (1.0, 10.0, 30.0),
    }.get(arm, (0.1, 1.0, 10.0))
    return [Trial(1e-3, weak), Trial(1e-3, middle), Trial(1e-3, strong), Trial(2e-3, middle)]


def settings() -> list[object]:
    """All of this file that decides results."""
    grid = {arm: [(trial.lr, trial.strength) for trial in trials(arm)] for arm in ARMS}
    return [grid, ART_OPTIONS, REPLAYED, PULL, SHOWN, SLOW_AVERAGE]


class EWC(Regularizer):
    """Elastic weight consolidation: F / 2 (theta - theta*)^2 (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3).

    Args:
        weight: lambda.
        fisher: F of each parameter, see `fisher_information`.
    """

    def __init__(self, weight: float, fisher: Sequence[Tensor]):
        super().__init__(weight)
        self._fisher = fisher

    def attach(self, model: Backbone) -> None:
        super().attach(model)
        self._parameters_of = list(model.parameters())

    def anchor(self) -> None:
        """Hold the parameters where they are now."""
        self._anchors = [parameter.detach().clone() for parameter in self._parameters_of]

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        each = zip(self._fisher, self._parameters_of, self._anchors, strict=True)
        return {"ewc": torch.stack([(f * (p - a).square()).sum() for f, p, a in each]).sum() / 2}

    def learn(self, outputs: Outputs) -> None:
        """Nothing."""


def fisher_information(backbone: Backbone, batches: Sequence[Batch], *, seed: int) -> list[Tensor]:
    """Diagonal of the Fisher information of each parameter, per token: next tokens are drawn from the model.

    A sequence counts as one observation, whose gradient is squared.
    """
    torch.manual_seed(seed)
    backbone.eval()
    parameters = list(backbone.parameters())
    fisher, tokens = [torch.zeros_like(p) for p in parameters], 0
    for batch in batches:
        for ids in batch.input_ids:
            logits = backbone(ids[None])[0]
            drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
            nats = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
            for f, gradient in zip(fisher, torch.autograd.grad(nats, parameters), strict=True):
                f += gradient.square()
            tokens += len(ids)
    return [f / tokens for f in fisher]


class RandomTexts(ARTRegularizer):
    """The same rehearsal, of as many texts that were drawn at random: what is left of it without ART."""

    def forget_art(self, windows: TokenWindows, *, seed: int) -> None:
        """Put random texts in the place of the typical ones; each is drawn as often."""
        there = self.art.texts[..., 0] >= 0
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(windows), generator=generator)[: int(there.sum())].tolist()
        texts = windows.__getitems__(drawn).input_ids[:, :SPAN]
        self.art.texts[there] = torch.nn.functional.pad(texts, (0, SPAN - texts.shape[1]), value=-1).int()
        self.art.used.zero_()

    def learn(self, outputs: Outputs) -> None:
        """Nothing."""


def new_module(
    arm: str, strength: float, model: dict[str, Any], state: dict[str, Tensor], fisher: Sequence[Tensor]
) -> LanguageModule:
    """An arm that starts from what was learned of the first domain.

    Args:
        model: options of the Decoder.
        state: of its tensors.
    """
    decoder = Decoder(**model, tie_weights=arm != FROZEN)
    regularizers: list[Regularizer] = []
    if arm == EWC_ARM:
        regularizers = [EWC(strength, fisher)]
    elif arm in (REHEARSAL, RANDOM):
        kind = RandomTexts if arm == RANDOM else ARTRegularizer
        options = {"normalize": "center", "average_decay": SLOW_AVERAGE, **ART_OPTIONS[arm]}
        options = options_of_today(options, "ARTRegularizer")
        regularizers = [kind(lambda_art=PULL, rehearsal=strength / PULL, **options)]
    elif arm in ART_OPTIONS:
        options = options_of_today(ART_OPTIONS[arm], "ARTRegularizer")
        regularizers = [ARTRegularizer(lambda_art=strength, normalize="center", **options)]
    module = CausalLM(decoder, extensions=[*regularizers])
    start_from(module, {"state_dict": {f"backbone.{name}": x for name, x in state.items()} | _others(module)})
    for regularizer in module.regularizers:
        if isinstance(regularizer, EWC):
            regularizer.anchor()
    if arm == FROZEN:
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(name == "lm_head.weight")
    return module


def _others(module: LanguageModule) -> dict[str, Tensor]:
    """Tensors of what is neither backbone nor regulariser."""
    parts = ("backbone.", OF_EXTENSIONS)
    return {name: x for name, x in module.state_dict().items() if not name.startswith(parts)}


@torch.no_grad()
def learn_categories(module: LanguageModule, text: TokenArray, block_size: int, *, seed: int) -> None:
    """Show ART `SHOWN` blocks of the first domain's training text, in random order, before the second domain comes."""
    windows = TokenWindows(text, block_size)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()[:SHOWN]
    module.eval()
    for regularizer in module.regularizers:
        if not isinstance(regularizer, ARTRegularizer):
            continue
        for start in range(0, len(order), 16):
            outputs = module.outputs(windows.__getitems__(order[start : start + 16]))
            ARTRegularizer.learn(regularizer, outputs)
        if isinstance(regularizer, RandomTexts):
            regularizer.forget_art(windows, seed=seed)
