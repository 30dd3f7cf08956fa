"""What an arm adds to the loss of the second domain, so that less of the first one is forgotten.

Shapes: B rows, T positions, V vocabulary, D width, N texts, S tokens of a text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.runs import frozen_copy
from lightning_app.art.extension import ARTRegularizer
from lightning_app.art.rehearsal import forgotten
from lightning_app.data.batch import Batch
from lightning_app.models.backbone import Backbone
from lightning_app.models.extension import Outputs, Regularizer
from lightning_app.models.losses import IGNORE, cross_entropy, softened_kl

TEMPERATURE = 2.0  # of LwF, as in its paper


class Anchored(Regularizer):
    """A term that needs the model as it is when the regulariser joins it: made with the weights of the first domain."""

    def __init__(self, weight: float):
        super().__init__(weight)

    def attach(self, model: Backbone) -> None:
        super().attach(model)
        self.anchor(model)

    @abstractmethod
    def anchor(self, model: Backbone) -> None:
        """Keep what is needed of it."""


class EWC(Anchored):
    """Elastic weight consolidation: F / 2 (theta - theta*)^2 (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3).

    Args:
        weight: lambda.
        fisher: F of each parameter, see `fisher_information`.
    """

    def __init__(self, weight: float, fisher: Sequence[Tensor]):
        super().__init__(weight)
        self._fisher = fisher

    def anchor(self, model: Backbone) -> None:
        self._parameters_of = list(model.parameters())
        self._anchors = [parameter.detach().clone() for parameter in self._parameters_of]

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        each = zip(self._fisher, self._parameters_of, self._anchors, strict=True)
        return {"ewc": torch.stack([(f * (p - a).square()).sum() for f, p, a in each]).sum() / 2}


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
            nats = F.cross_entropy(logits, drawn, reduction="sum")
            for f, gradient in zip(fisher, torch.autograd.grad(nats, parameters), strict=True):
                f += gradient.square()
            tokens += len(ids)
    return [f / tokens for f in fisher]


class LwF(Anchored):
    """Learning without forgetting: T^2 KL(old || new) on the new text (Li and Hoiem 2016, arXiv:1606.09282).

    In nats per token; T is `TEMPERATURE`.
    """

    def anchor(self, model: Backbone) -> None:
        self._old = [frozen_copy(model)]  # in a list: as a part its parameters would be the module's

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = self._old[0].text_logits(outputs.ids)
        found = outputs.logits[outputs.mask]
        return {"lwf": softened_kl(found, wanted[outputs.mask], temperature=TEMPERATURE)}


class Prototypes(Anchored):
    """KL(old || new) of the next tokens that the output matrix reads from some states, without any text.

    Args:
        weight: see `Regularizer`.
        states: (N, D) such as prototypes of categories.
    """

    def __init__(self, weight: float, states: Tensor):
        super().__init__(weight)
        self._states = states

    @torch.no_grad()
    def anchor(self, model: Backbone) -> None:
        self._wanted = model.logits(self._states).detach()

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"prototypes": softened_kl(self.model.logits(self._states), self._wanted, temperature=1.0)}


Draw = Callable[[], Tensor]


class Rehearsed(Anchored):
    """A loss on texts of the first domain, or on what takes their place; some are drawn anew in each step.

    Args:
        weight: see `Regularizer`.
        draw: (N, S) ids, -1 behind a text's end.
        decay: KL(averaged model || model), whose average keeps so much of itself in each step (1: the model before);
            None: the cross-entropy of the texts' own next tokens. In nats per token.
    """

    def __init__(self, weight: float, draw: Draw, decay: float | None):
        super().__init__(weight)
        self._draw, self._decay = draw, decay

    def anchor(self, model: Backbone) -> None:
        self._average = [] if self._decay is None else [frozen_copy(model)]

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        if not self.training:
            return {}
        texts = self._draw()
        if self._decay is None:
            return {"rehearsed": own_tokens(self.model, texts)}
        found = forgotten(self.model, self._average[0], texts, lambda model, ids, _: model.text_logits(ids))
        return {"rehearsed": found}

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        if self._decay is not None and self._decay < 1:
            pairs = zip(self._average[0].parameters(), self.model.parameters(), strict=True)
            for average, parameter in pairs:
                average.lerp_(parameter, 1 - self._decay)
        return {}


def own_tokens(model: Backbone, texts_NS: Tensor) -> Tensor:
    """Cross-entropy of texts' next tokens, in nats per token; -1 behind their ends."""
    texts_NS = texts_NS[:, : int((texts_NS >= 0).sum(-1).amax())]  # a model may take no more than they have
    ids, targets = texts_NS[:, :-1].clamp_min(0), texts_NS[:, 1:]
    return cross_entropy(model.text_logits(ids), targets.where(targets >= 0, IGNORE))


class Settled(ARTRegularizer):
    """ART whose categories stay those of the first domain; it counts how many of the new texts are novel to them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.shares: list[float] = []  # of novel texts, in each step

    @torch.no_grad()
    def learn_step(self, seen: Sequence[Outputs]) -> None:
        novel = [self.art.is_novel(self.embeddings(outputs)[0]) for outputs in seen]
        self.shares.append(float(torch.cat(novel).float().mean()))
